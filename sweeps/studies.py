"""The study that holds a sweep: found, made, and claimed for what the sweep is after."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study

from sweeps.goal import Goal
from sweeps.replicates import Replicates
from sweeps.space import Space


def find(storage: RDBStorage, name: str) -> Study | None:
    """The study of this name, if there is one."""
    known = name in optuna.get_all_study_names(storage)
    return optuna.load_study(storage=storage, study_name=name) if known else None


def create(storage: RDBStorage, name: str, directions: Sequence[str], folder: Path) -> Study:
    """A new study, or that which another process has just made. ValueError when `folder` holds another's trials."""
    if any(folder.glob("[0-9]*")):
        raise ValueError(
            f"hydra.sweep.dir={folder}: holds trials that the study's storage does not know; "
            "delete the folder, or give another hydra.sweeper.study_name"
        )
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def claim(study: Study, space: Space, goal: Goal, replicates: Replicates) -> None:
    """Have a study search this space for this goal. ValueError for one that searched something else before."""
    after: dict[str, Any] = {"direction": goal.directions[0]}
    if goal.several or goal.bounded:
        after = {"direction": goal.directions, "at_most": dict(goal.at_most), "at_least": dict(goal.at_least)}
    if replicates.count > 1:
        after |= {"replicates": replicates.count, "by": replicates.by, "first": replicates.first}
    searched = json.dumps(after | {"space": space.fingerprint()})
    if "searched" not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr("searched", searched)
    elif study.user_attrs.get("searched") != searched:
        raise ValueError(
            f"hydra.sweeper.study_name={study.study_name}: holds a sweep over another space, or in another direction "
            "or within other bounds, or with other seeds; "
            "give the same overrides, or another hydra.sweeper.study_name"
        )
