"""`ghm retry NAME [TRIAL...]`: queues failed trials of a sweep again, once the cause is gone."""

import shlex
import sys
from pathlib import Path

from omegaconf import DictConfig

from ghm.verbs import composed


def main() -> None:
    words = sys.argv[1:]
    named, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not named:
        raise ValueError("ghm retry: names no sweep; write ghm retry NAME [TRIAL...]")
    name, *trials = named
    for trial in trials:
        if not trial.isdecimal():
            raise ValueError(f"{trial}: is no number of a trial; write ghm retry {name} [TRIAL...]")
    config = composed.of_sweep([f"hydra.sweeper.study_name={shlex.quote(name)}", *overrides])
    retry(config, [int(trial) for trial in trials])


def retry(config: DictConfig, numbers: list[int]) -> list[str]:
    """Queue the failed trials of these numbers, or all that failed, again; what it queued, in words.

    ValueError for a sweep that is not there or runs, and for a trial that has not failed.
    """
    from sweeps.retry import retry as queue_again  # a second to import

    settings, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir).resolve()
    queued = queue_again(settings.study_name, settings.storage, Path(config.runs), folder, numbers, settings.lease)
    if queued:
        print(f"Queued again: {', '.join(queued)}. The sweep's own command runs them")
    else:
        print(f"Nothing to queue: no trial of {settings.study_name} has failed")
    return queued
