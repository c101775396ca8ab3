"""`ghm sync`: sends to MLflow what runs could not send while its server was away."""

from pathlib import Path

from omegaconf import DictConfig

from ghm.failure import Failed
from ghm.settings.paths import absolute
from ghm.tracking import SPOOL, Sender, Tracker, waiting
from ghm.verbs import composed


def main() -> None:
    composed.run(run, "sync")


def run(cfg: DictConfig) -> int:
    """Send all that waits below `cfg.folder`; how many runs that were.

    ValueError when the server is still away, Failed when it goes away before it has all.
    """
    cfg = absolute(cfg)
    folders = sorted({path.parent for path in Path(cfg.cwd, cfg.folder).rglob(SPOOL) if waiting(path.parent)})
    folders.sort(key=lambda folder: len(folder.parts))  # a sweep before its trials
    tracker = Tracker.open(cfg.tracking.uri, cfg.tracking.experiment, cfg.runs).reach()
    with Sender(tracker, lambda: folders, patience=60):  # also for what another process is sending now
        pass
    if left := [folder for folder in folders if waiting(folder)]:
        raise Failed(f"{len(left)} of {len(folders)} records were not sent (first: {left[0]}); run ghm sync again")
    print(f"Sent: the records of {len(folders)} runs below {cfg.folder}")
    return len(folders)
