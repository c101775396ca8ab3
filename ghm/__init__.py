"""Training object detectors with gradient-harmonized losses, and finding out whether they help."""

from ghm.reporting import report

__all__ = ["report"]
__version__ = "0.1.0"
