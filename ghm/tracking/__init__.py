"""The only door to MLflow. What a run records goes to its folder first (spool) and is sent from there (sender)."""

from mlflow.entities import Run as Record

from ghm.tracking.client import SAME, Away, Point, Run, Tracker, data_of, waiting_at_most
from ghm.tracking.mirror import agree
from ghm.tracking.sender import Sender, waiting
from ghm.tracking.shared_view import link, run_link, shared_view
from ghm.tracking.spool import SPOOL, Spool

__all__ = [
    "SAME",
    "SPOOL",
    "Away",
    "Point",
    "Record",
    "Run",
    "Sender",
    "Spool",
    "Tracker",
    "agree",
    "data_of",
    "link",
    "run_link",
    "shared_view",
    "waiting",
    "waiting_at_most",
]
