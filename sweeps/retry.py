"""Failed trials of a sweep that no controller runs, queued again."""

from pathlib import Path

from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy import text

from ghm.tracking import agree
from sweeps import studies
from sweeps.lease import Lease
from sweeps.space import label
from sweeps.states import State
from sweeps.storage import open_storage
from sweeps.trials import ATTEMPT, ERROR, RUNS, SPENT, Trial, trial_of


def retry(name: str, url: str | None, runs: Path, folder: Path, numbers: list[int], lease: float) -> list[str]:
    """Queue the trials of these numbers, or all that failed; what was queued, in words.

    `url` and `runs` say where the study is, `folder` holds the trials. ValueError for a sweep that is not there or is
    being run, and for a number that is not that of a failed trial.
    """
    storage = open_storage(url, runs)
    study = studies.find(storage, name)
    if study is None:
        raise ValueError(f"{name}: the study's storage holds no sweep of this name; give its runs, or its storage")
    with Lease(storage, study._study_id, name, lease):
        queued = queue_again(storage, study, numbers)
    agree({folder / f"{trial.number:04d}": State.QUEUED for trial in queued})
    return [f"trial {trial.number} ({label(trial.params)})" for trial in queued]


def queue_again(storage: RDBStorage, study: Study, numbers: list[int]) -> list[Trial]:
    """Queue failed trials again, all of them where none is named, for a new first attempt; those it queued.

    For who holds the lease. ValueError for a number that is not that of a failed trial.
    """
    trials = storage.get_all_trials(study._study_id)  # the study itself takes an end for final
    failed = {trial.number: trial for trial in trials if trial.state == TrialState.FAIL}
    for number in numbers:
        if number not in failed:
            listed = ", ".join(map(str, failed)) or "none"
            raise ValueError(f"{number}: is no failed trial of {study.study_name}; failed are {listed}")
    chosen = [trial for number, trial in failed.items() if not numbers or number in numbers]
    for trial in chosen:
        # Optuna offers no way back from an end.
        with storage.engine.begin() as connection:
            queued = "UPDATE trials SET state = 'WAITING', datetime_complete = NULL WHERE trial_id = :trial"
            connection.execute(text(queued), {"trial": trial._trial_id})
        for key, value in ((ATTEMPT, 1), (ERROR, ""), (SPENT, False)):
            if key in trial.user_attrs:
                storage.set_trial_user_attr(trial._trial_id, key, value)
        if runs := trial.user_attrs.get(RUNS):
            again = {replicate: kept | {"attempt": 1} for replicate, kept in runs.items()}
            storage.set_trial_user_attr(trial._trial_id, RUNS, again)
    return [trial_of(trial) for trial in chosen]
