"""A run whose folder not all nodes see: its checkpoints are kept with its MLflow run, and fetched where it goes on."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from ghm.failure import Lost
from ghm.job import Job
from ghm.tracking import Away, Sender, Spool, Tracker, waiting_at_most
from ghm.training import checkpoint

PATIENCE = 300.0  # seconds for a server that does not answer: nothing else holds these checkpoints

log = logging.getLogger(__name__)


@contextmanager
def kept(job: Job) -> Iterator[None]:
    """Around what rank 0 does: have the run's last checkpoint on this node, and send what is recorded here.

    Lost when the server, which alone may have the checkpoint, does not answer for long.
    """
    place = job.place
    tracker = Tracker.open(place.tracking_uri, place.experiment, str(place.runs))
    _fetch(job, tracker)
    if place.workers == 0:  # this process began the run, and sends it
        yield
        return
    assert job.key.record is not None
    Spool(place.folder, job.key.start).join(job.key.record)
    with Sender(tracker, lambda: [place.folder], PATIENCE):
        yield


def trained_elsewhere(folder: Path, epochs: int) -> bool:
    """Whether a run that has reported so many epochs wrote the last of them where this folder is not seen."""
    return checkpoint.committed(folder) < epochs


def _fetch(job: Job, tracker: Tracker) -> None:
    """Put the checkpoints that the run left in MLflow into its folder, unless those there are as new."""
    assert job.key.record is not None, "a run that moves is found by its key"
    again = retry_if_exception_type(Away)
    tries = Retrying(retry=again, wait=wait_exponential(max=15), stop=stop_after_delay(PATIENCE), reraise=True)
    folder = job.place.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fetched:
        try:
            with waiting_at_most(60):
                paths = tries(tracker.download, job.key.record, "checkpoints", Path(fetched))
        except Away as error:
            raise Lost(f"MLflow, which may hold the run's last checkpoint, does not answer ({error})") from error
        try:
            checkpoint.adopt(paths, folder)
        except ValueError as error:
            log.warning("%s; going on with what is here", error)
