"""What a sweep does next: pure functions of what its trials are and of what just happened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.goal import Values
from sweeps.replicates import Replicates
from sweeps.states import Answer, State
from sweeps.trials import Run, Trial


@dataclass(frozen=True)
class Rules:
    """`hydra.sweeper`'s. Times in seconds."""

    n_trials: int
    max_failure_rate: float  # share of trials whose task may raise
    max_attempts: int  # of a trial whose process, machine or memory is lost
    backoff: float  # before the second attempt; doubled for each after it
    patience: float  # without a sign of life from a trial's process, after which it is lost


@dataclass(frozen=True)
class End:
    """How an attempt ended: with a value for each objective, by its own exception (`error`), or lost (`lost`)."""

    values: Values | None = None
    error: str | None = None
    lost: str | None = None


@dataclass(frozen=True)
class Change:
    """What becomes of a run; one that is QUEUED goes on after `wait` seconds, as `attempt`."""

    state: State
    attempt: int
    values: Values = ()
    error: str = ""
    spent: bool = False
    wait: float = 0.0


def due(
    trials: Sequence[Trial], waits: Mapping[int, float], now: float, replicates: Replicates, wide: bool, ahead: bool
) -> tuple[Trial, int] | None:
    """The run to go on with, as trial and replicate, if any may.

    One run of a trial at a time, as the race may drop it after each; `ahead`: more, for slots that would be idle.
    `wide`: what has the fewest runs comes first; else a trial that was begun is brought to its end.
    """
    found = []
    for trial in (one for one in trials if not one.over):
        for replicate in range(replicates.count):
            run = trial.run(replicate)
            waits_still = waits.get(replicates.run(trial.number, replicate), 0) > now
            if not run.values and not run.running and not waits_still:
                found.append((wide * replicate, trial.number, replicate))
            if not run.values and not ahead:
                break
    if not found:
        return None
    _, number, replicate = min(found)
    return trials[number], replicate


def answer(run: Run, epoch: int, epochs: int, prunes: bool, ending: bool) -> Answer:
    """To the report of an epoch, of `epochs` (0: nobody knows).

    `prunes` is the pruner's verdict on it; `ending` says that the sweep drains, or cannot afford another epoch.
    """
    if 0 < epochs <= epoch or epoch < run.epochs:
        return Answer.GO_ON  # it is at its end, or repeats what was decided before
    if prunes:
        return Answer.PRUNE
    return Answer.DRAIN if ending else Answer.GO_ON


def after(run: Run, end: End, told: Answer, rules: Rules) -> Change:
    """What becomes of a run whose attempt ended, having been told `told` last."""
    if end.lost is not None:
        if run.attempt >= rules.max_attempts:
            error = f"attempt {run.attempt} of {rules.max_attempts} was lost: {end.lost}"
            return Change(State.FAILED, run.attempt, error=error, spent=True)
        return Change(State.QUEUED, run.attempt + 1, error=end.lost, wait=rules.backoff * 2 ** (run.attempt - 1))
    if end.error is not None:
        return Change(State.FAILED, run.attempt, error=end.error)
    assert end.values is not None
    if told == Answer.DRAIN:
        return Change(State.QUEUED, run.attempt)
    if any(map(math.isnan, end.values)):
        return Change(State.FAILED, run.attempt, error="its objective is not a number (nan)")
    return Change(State.PRUNED if told == Answer.PRUNE else State.DONE, run.attempt, values=end.values)


def failures(trials: Sequence[Trial], rules: Rules) -> list[Trial]:
    """The trials whose task raised, where they are too many."""
    failed = [trial for trial in trials if trial.state == State.FAILED and not trial.spent]
    return failed if len(failed) > rules.max_failure_rate * rules.n_trials else []


def missing(trials: Sequence[Trial], finite: bool) -> list[Trial]:
    """The trials without a result that a sweep is not complete without: in a finite space, every point counts."""
    return [trial for trial in trials if trial.state == State.FAILED and (finite or trial.spent)]
