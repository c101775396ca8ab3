"""The study: what was tried and what came of it. Optuna's storage is the only truth of a sweep."""

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from sweeps.space import Params, Space

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at `url`, or a SQLite file in `folder`. ValueError when it cannot be opened."""
    if url is None:
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{folder.resolve()}/optuna.db"
    try:
        storage = RDBStorage(url)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"hydra.sweeper.storage={url}: cannot be opened ({reason}); correct it") from error
    if url.startswith("sqlite"):
        # Write-ahead logging lets a dashboard read while trials are written.
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode=WAL"))
        storage.engine.dispose()
    return storage


def open_study(storage: BaseStorage, name: str, direction: str, space: Space) -> Study:
    """The study of this name, new or continued. ValueError if it searched something else before."""
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    before = study.user_attrs.get("space")
    if before is not None and before != space.fingerprint():
        raise ValueError(
            f"hydra.sweeper.study_name={name}: holds a sweep over another space; give the same overrides, "
            "or another hydra.sweeper.study_name"
        )
    study.set_user_attr("space", space.fingerprint())
    return study


def resume(storage: BaseStorage, study: Study) -> int:
    """Put trials that nobody works on any more back in the queue, with number and values. How many.

    `Study.ask` hands them out first; their folder still holds their last checkpoint.
    """
    stale = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in stale:
        storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)
    return len(stale)


def enqueue(study: Study, first: list[Params], space: Space, n_trials: int) -> int:
    """Queue what is known from the start, unless the study has begun; how many trials it is to hold.

    A space of at most `n_trials` points is searched in full, each point once. Of a larger one only
    the settings in `first` are queued, and keys they leave out are sampled.
    """
    known = {dimension.key for dimension in space.dimensions}
    wanted = [{key: params[key] for key in params if key in known} for params in first if space.fits(params)]
    points = space.points(most=n_trials)
    if points is not None:
        wanted = sorted(points, key=lambda point: not any(some.items() <= point.items() for some in wanted))
    if not study.get_trials(deepcopy=False):
        for params in wanted:
            study.enqueue_trial(params)
    return n_trials if points is None else len(points)


def count(study: Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def results(study: Study) -> dict[str, Any]:
    """What Hydra's Optuna sweeper writes to `optimization_results.yaml`."""
    if not count(study, TrialState.COMPLETE):
        return {"name": "ghm", "best_params": None, "best_value": None}
    return {"name": "ghm", "best_params": dict(study.best_params), "best_value": study.best_value}
