"""Whether the run that a folder holds is the one that is asked for: then it goes on, or else it is left alone."""

from collections.abc import Collection
from typing import Any

from torch import nn

from ghm.job import PLACE, Job, canonical
from ghm.settings.parts import build, build_optimizer

STEPS = 10  # an epoch, when schedules are compared


def refuse_other(job: Job, before: dict[str, Any], given: Collection[str] = ()) -> None:
    """ValueError where a run begun with the settings `before` (flat) has other numbers than this job's.

    More epochs are the same run where they leave the learning rate of those that are done as it is. A setting
    that a newer version adds is the same while it is not among the keys `given` in the command.
    """
    folder = job.place.folder
    before = {key: value for key, value in before.items() if key.split(".")[0] not in PLACE}  # older versions kept them
    old, new = (canonical(settings) for settings in (before, job.settings.flat()))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) and (key in old) == (key in new):
            continue
        if key == "epochs":
            _refuse_other_rates(job, old[key])
        elif key in old or key in given:
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
