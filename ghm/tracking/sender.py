"""Sends what runs recorded on disk to MLflow: in order, each entry once, again and again while the server is away."""

import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from filelock import FileLock, Timeout
from tenacity import Retrying, retry_if_exception_type, stop_when_event_set, wait_exponential
from tenacity.nap import sleep_using_event

from ghm.tracking.client import Early, Point, Refused, Run, Tracker, waiting_at_most
from ghm.tracking.spool import SENT, SPOOL, read

MOST_POINTS = 1000  # metrics in one call, MLflow's limit
SLOWEST = 10_000_000  # bytes of files a second; a server that is slower at the end of a run is taken for away

log = logging.getLogger(__name__)


@dataclass
class Sent:
    """How far a spool was sent, beside it on disk: written after each answer, so a repeat is the last call's."""

    offset: int = 0
    run_id: str | None = None
    attempt: int = 0
    steps: dict[str, int] = field(default_factory=dict)  # the last step of each metric
    files: dict[str, list[int]] = field(default_factory=dict)  # size and time of change of each file sent

    @classmethod
    def read(cls, folder: Path) -> "Sent":
        try:
            return cls(**json.loads((folder / SENT).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()  # sending all of it again stores nothing twice

    def write(self, folder: Path) -> None:
        partial = folder / f"{SENT}.partial"
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(folder / SENT)


def send(folder: Path, tracker: Tracker) -> None:
    """Send what is new in the spool of `folder`. Away when nobody answers."""
    sent = Sent.read(folder)
    points: list[Point] = []

    def flush() -> None:
        if not points:
            return
        assert sent.run_id is not None, "a record begins with its start"
        for start in range(0, len(points), MOST_POINTS):
            _try(folder, tracker.run(sent.run_id).log_points, points[start : start + MOST_POINTS])
        points.clear()

    for offset, entry in list(read(folder / SPOOL, sent.offset)):
        if entry and entry["attempt"] < sent.attempt:
            log.warning("%s: refused what attempt %d wrote after %d began", folder, entry["attempt"], sent.attempt)
        elif "metrics" in entry:
            points += _new_points(entry, sent)
        elif "start" in entry:
            flush()
            start, known = entry["start"], sent.run_id
            sent.run_id = tracker.begin(**{"create": True} | start, at=entry["at"])
            if known not in (None, sent.run_id):  # another server, or one that forgot: it gets all from the start
                Sent().write(folder)
                send(folder, tracker)
                return
            sent.attempt = entry["attempt"]
            if known is None:  # what another machine sent of this run is not sent again
                sent.steps = tracker.run(sent.run_id).steps()
        elif "share" in entry:
            _try(folder, tracker.share, entry["share"], entry["view"])
        elif entry:
            flush()
            assert sent.run_id is not None, "a record begins with its start"
            _send(folder, entry, tracker.run(sent.run_id), sent)
        sent.offset = offset
        if not points:  # or else it is not yet true
            sent.write(folder)
    if points:
        flush()
        sent.write(folder)


def _new_points(entry: dict[str, Any], sent: Sent) -> list[Point]:
    """The metrics of an entry whose step is later than any before: an epoch done again is not recorded again."""
    step = entry["step"]
    new = {key: value for key, value in entry["metrics"].items() if step > sent.steps.get(key, -1)}
    sent.steps |= dict.fromkeys(new, step)
    return [Point(key, value, entry["at"], step) for key, value in new.items()]


def _send(folder: Path, entry: dict[str, Any], run: Run, sent: Sent) -> None:
    if "params" in entry:
        _try(folder, run.log_params, entry["params"])
    elif "datasets" in entry:
        _try(folder, run.log_datasets, entry["datasets"])
    elif "tags" in entry:
        _try(folder, run.set_tags, entry["tags"])
    elif "text" in entry:
        _try(folder, run.log_text, entry["text"], entry["path"])
    elif "file" in entry:
        _send_file(folder, Path(entry["file"]), entry["folder"], run, sent)
    elif "finish" in entry:
        _try(folder, run.finish, entry["finish"], entry["state"], entry["at"])


def _send_file(folder: Path, path: Path, place: str, run: Run, sent: Sent) -> None:
    """One request a file that changed since it was sent."""
    if not path.exists():
        log.warning("%s: is gone and cannot be kept with its run", path)
        return
    state = path.stat()
    known = [state.st_size, state.st_mtime_ns]
    if sent.files.get(f"{place}/{path.name}") != known:
        _try(folder, run.log_file, path, place)
        sent.files[f"{place}/{path.name}"] = known


def _try(folder: Path, call: Callable[..., None], *args: Any) -> None:
    """What the server refuses for good must not hold up what follows."""
    try:
        call(*args)
    except Refused as error:
        log.warning("%s: MLflow refused an entry: %s", folder, error)


class Sender:
    """A thread that sends the spools of `folders()` as they grow; enter it as a context.

    Leaving it sends what is left for at most `patience` seconds, and as long as its files need at `SLOWEST`:
    the rest stays on disk, for the next sender of these folders or `ghm sync`.
    """

    def __init__(self, tracker: Tracker, folders: Callable[[], Iterable[Path]], patience: float = 5.0) -> None:
        self.tracker, self.folders, self.patience = tracker, folders, patience
        self._stop, self._gone, self._lock = Event(), Event(), Lock()
        self._sizes: dict[Path, int] = {}  # of the spools that were sent in full

    def __enter__(self) -> "Sender":
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        last = Thread(target=self._retry, args=(self._gone,), daemon=True)
        last.start()
        last.join(self.patience + sum(map(_bytes_waiting, self.folders())) / SLOWEST)
        self._gone.set()
        left = [folder for folder in self.folders() if waiting(folder)]
        if left:
            log.warning(
                "MLflow did not take all: the records of %d runs wait on disk (first: %s); "
                "the next command on them sends these, or `ghm sync`",
                len(left),
                left[0],
            )

    def _work(self) -> None:
        while not self._stop.wait(0.5):
            self._retry(self._stop)

    def _retry(self, stop: Event) -> None:
        """One pass over all spools, tried until the server answers (and the disk takes notes) or `stop` is set."""
        waits = wait_exponential(multiplier=0.5, max=15)
        ends, again = stop_when_event_set(stop), retry_if_exception_type(OSError)  # Away is one
        with suppress(OSError):  # as it was stopped
            Retrying(wait=waits, stop=ends, retry=again, sleep=sleep_using_event(stop), reraise=True)(self.once)

    def once(self) -> None:
        """Send everything there is now. Away when the server is, Timeout while another process sends a record."""
        early: OSError | None = None
        with self._lock, waiting_at_most(60):
            for folder in self.folders():
                path = folder / SPOOL
                size = path.stat().st_size if path.exists() else 0
                if size == self._sizes.get(folder, 0):
                    continue
                try:
                    with FileLock(folder / ".sending.lock", timeout=0):
                        send(folder, self.tracker)
                    self._sizes[folder] = size
                except (Early, Timeout) as error:  # or another process sends it: holds up this run alone
                    early = error
        if early is not None:
            raise early


def waiting(folder: Path) -> bool:
    """Whether the spool of `folder` holds what was not sent."""
    path = folder / SPOOL
    return path.exists() and any(True for _ in read(path, Sent.read(folder).offset))


def _bytes_waiting(folder: Path) -> int:
    """Size of the files that were not sent."""
    entries = (entry for _, entry in read(folder / SPOOL, Sent.read(folder).offset))
    files = {Path(entry["file"]) for entry in entries if "file" in entry}
    return sum(path.stat().st_size for path in files if path.exists())
