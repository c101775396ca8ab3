"""The study: what was tried and what came of it. Optuna's storage is the only truth of a sweep."""

import json
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import BaseModel
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy import event, inspect
from sqlalchemy.exc import SQLAlchemyError

from ghm.secrets import hidden
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
        reason = hidden(str(error).splitlines()[0])
        raise ValueError(f"hydra.sweeper.storage={hidden(url)}: cannot be opened ({reason}); correct it") from error
    _check_schema(storage, url)
    if url.startswith("sqlite"):
        # Write-ahead logging lets a dashboard read while trials are written.
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode=WAL"))
        storage.engine.dispose()
    return storage


def _check_schema(storage: RDBStorage, url: str) -> None:
    """ValueError for a database whose tables are not those of this Optuna; its own check compares only versions."""
    there = inspect(storage.engine)
    for table in BaseModel.metadata.tables.values():
        lacking = {column.name for column in table.columns} - {one["name"] for one in there.get_columns(table.name)}
        if lacking:
            raise ValueError(
                f"hydra.sweeper.storage={hidden(url)}: was made by another version of Optuna (its table "
                f"{table.name} has no {min(lacking)}); upgrade it with `optuna storage upgrade`, or give another"
            )


def open_study(storage: BaseStorage, name: str, direction: str, space: Space, folder: Path) -> Study:
    """The study of this name, new or continued.

    ValueError if it searched something else before, or if it is new and `folder` holds another's trials.
    """
    searched = json.dumps({"direction": direction, "space": space.fingerprint()})
    known = name in optuna.get_all_study_names(storage)
    if not known and any(folder.glob("[0-9]*")):
        raise ValueError(
            f"hydra.sweep.dir={folder}: holds trials that the study's storage does not know; "
            "delete the folder, or give another hydra.sweeper.study_name"
        )
    study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    if known and study.user_attrs.get("searched") != searched:
        raise ValueError(
            f"hydra.sweeper.study_name={name}: holds a sweep over another space, or in another direction; "
            "give the same overrides, or another hydra.sweeper.study_name"
        )
    study.set_user_attr("searched", searched)
    return study


def resume(storage: BaseStorage, study: Study) -> None:
    """Put trials that nobody works on any more back in the queue, with number and values.

    `Study.ask` hands them out first; their folder still holds their last checkpoint.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)


def enqueue(study: Study, first: list[Params], space: Space, n_trials: int) -> int:
    """Queue what is known from the start and not in the study yet; how many trials it is to hold.

    A space of at most `n_trials` points is searched in full, each point once. Of a larger one only
    the settings in `first` are queued, when the study begins, and keys they leave out are sampled.
    """
    given = [params for params in map(space.given, first) if params is not None]
    trials = study.get_trials(deepcopy=False)
    points = space.points(most=n_trials)
    if points is None:
        wanted = [] if trials else given
    else:
        tried = [trial.params or trial.system_attrs.get("fixed_params", {}) for trial in trials]
        wanted = [point for point in points if point not in tried]
        wanted.sort(key=lambda point: not any(some.items() <= point.items() for some in given))
    for params in wanted:
        study.enqueue_trial(params)
    return n_trials if points is None else len(trials) + len(wanted)


def count(study: Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def results(study: Study) -> dict[str, Any]:
    """What Hydra's Optuna sweeper writes to `optimization_results.yaml`."""
    if not count(study, TrialState.COMPLETE):
        return {"name": "ghm", "best_params": None, "best_value": None}
    return {"name": "ghm", "best_params": dict(study.best_params), "best_value": study.best_value}
