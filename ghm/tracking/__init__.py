"""The only door to MLflow."""

from ghm.tracking.client import Run, Tracker

__all__ = ["Run", "Tracker"]
