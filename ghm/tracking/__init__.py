"""The only door to MLflow. What a run records goes to its folder first (spool) and is sent from there (sender)."""

from ghm.tracking.client import Away, Run, Tracker
from ghm.tracking.mirror import agree
from ghm.tracking.sender import Sender, waiting
from ghm.tracking.spool import SPOOL, Spool

__all__ = ["SPOOL", "Away", "Run", "Sender", "Spool", "Tracker", "agree", "waiting"]
