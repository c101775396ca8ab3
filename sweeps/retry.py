"""Failed trials of a sweep that no controller runs, queued again."""

from pathlib import Path

from ghm.tracking import agree
from sweeps import ledger
from sweeps.lease import Lease
from sweeps.space import label
from sweeps.states import State
from sweeps.storage import open_storage


def retry(name: str, url: str | None, runs: Path, folder: Path, numbers: list[int], lease: float) -> list[str]:
    """Queue the trials of these numbers, or all that failed; what was queued, in words.

    `url` and `runs` say where the study is, `folder` holds the trials. ValueError for a sweep that is not there or is
    being run, and for a number that is not that of a failed trial.
    """
    storage = open_storage(url, runs)
    study = ledger.find(storage, name)
    if study is None:
        raise ValueError(f"{name}: the study's storage holds no sweep of this name; give its runs, or its storage")
    with Lease(storage, study._study_id, name, lease):
        queued = ledger.retry(storage, study, numbers)
    agree({folder / f"{trial.number:04d}": State.QUEUED for trial in queued})
    return [f"trial {trial.number} ({label(trial.params)})" for trial in queued]
