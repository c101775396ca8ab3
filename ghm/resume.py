"""Whether the run that a folder holds is the one that is asked for: then it goes on, or else it is left alone."""

import inspect
from functools import reduce
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf
from torch import nn

from ghm.job import PLACE, Job, canonical
from ghm.parts import build, build_optimizer
from ghm.paths import CONF

STEPS = 10  # an epoch, when schedules are compared


def refuse_other(job: Job, before: dict[str, Any]) -> None:
    """ValueError where a run begun with the settings `before` (flat) has other numbers than this job's.

    More epochs are the same run where they leave the learning rate of those that are done as it is. A setting
    that a newer version adds is the same at its default.
    """
    folder = job.place.folder
    before = {key: value for key, value in before.items() if key.split(".")[0] not in PLACE}  # older versions kept them
    old, new = (canonical(settings) for settings in (before, job.settings.flat()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) and (key in old) == (key in new):
            continue
        if key == "epochs":
            _refuse_other_rates(job, old[key])
        elif key in old or new[key] != _default(job, key):
            raise ValueError(
                f"dir={folder}: holds a run with {key}={old.get(key)}, not {new.get(key)}; give another dir"
            )


def _refuse_other_rates(job: Job, epochs: int) -> None:
    done = min(epochs, job.settings.epochs) * STEPS
    one, other = (_rates(job, count, done) for count in (epochs, job.settings.epochs))
    if one != other:
        raise ValueError(
            f"dir={job.place.folder}: holds a run of epochs={epochs}, and its learning rate depends on their number; "
            f"give epochs={epochs} to go on, or another dir for epochs={job.settings.epochs}"
        )


def _rates(job: Job, epochs: int, steps: int) -> list[float]:
    """The learning rates of the first steps of a run of so many epochs."""
    cfg = job.settings.config()
    optimizer = build_optimizer(cfg, nn.Linear(1, 1))
    schedule = build(cfg, "schedule", optimizer, epochs, STEPS)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def _default(job: Job, key: str) -> Any:
    """What a setting is when nobody gives it: conf/train.yaml's, or that of the part it is handed to."""
    *path, name = key.split(".")
    if not path:
        return canonical(OmegaConf.load(CONF / "train.yaml").get(name))
    part = reduce(lambda node, step: node[step], path, job.settings.parts)
    made_by = get_object(part["_target_"])
    for maker in getattr(made_by, "__mro__", (made_by,)):  # a loss hands on what it does not know to what it extends
        if (parameter := inspect.signature(maker).parameters.get(name)) is not None:
            return canonical(parameter.default)
    return None
