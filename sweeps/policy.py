"""What a sweep does next: pure functions of what its trials are and of what just happened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.goal import Values
from sweeps.ledger import Trial
from sweeps.states import Answer, State


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
    """What becomes of a trial; one that is QUEUED goes on after `wait` seconds, as `attempt`."""

    state: State
    attempt: int
    values: Values = ()
    error: str = ""
    spent: bool = False
    wait: float = 0.0


def due(trials: Sequence[Trial], waits: Mapping[int, float], now: float) -> Trial | None:
    """The queued trial to go on with, if any may."""
    return next((trial for trial in trials if trial.state == State.QUEUED and waits.get(trial.number, 0) <= now), None)


def answer(trial: Trial, epoch: int, epochs: int, prunes: bool, ending: bool) -> Answer:
    """To the report of an epoch, of `epochs` (0: nobody knows).

    `prunes` is the pruner's verdict on it; `ending` says that the sweep drains, or cannot afford another epoch.
    """
    if 0 < epochs <= epoch or epoch < max(trial.epochs):
        return Answer.GO_ON  # it is at its end, or repeats what was decided before
    if prunes:
        return Answer.PRUNE
    return Answer.DRAIN if ending else Answer.GO_ON


def after(trial: Trial, end: End, told: Answer, rules: Rules) -> Change:
    """What becomes of a trial whose attempt ended, having been told `told` last."""
    if end.lost is not None:
        if trial.attempt >= rules.max_attempts:
            error = f"attempt {trial.attempt} of {rules.max_attempts} was lost: {end.lost}"
            return Change(State.FAILED, trial.attempt, error=error, spent=True)
        return Change(State.QUEUED, trial.attempt + 1, error=end.lost, wait=rules.backoff * 2 ** (trial.attempt - 1))
    if end.error is not None:
        return Change(State.FAILED, trial.attempt, error=end.error)
    assert end.values is not None
    if told == Answer.DRAIN:
        return Change(State.QUEUED, trial.attempt)
    if any(map(math.isnan, end.values)):
        return Change(State.FAILED, trial.attempt, error="its objective is not a number (nan)")
    return Change(State.PRUNED if told == Answer.PRUNE else State.DONE, trial.attempt, values=end.values)


def failures(trials: Sequence[Trial], rules: Rules) -> list[Trial]:
    """The trials whose task raised, where they are too many."""
    failed = [trial for trial in trials if trial.state == State.FAILED and not trial.spent]
    return failed if len(failed) > rules.max_failure_rate * rules.n_trials else []


def missing(trials: Sequence[Trial], finite: bool) -> list[Trial]:
    """The trials without a result that a sweep is not complete without: in a finite space, every point counts."""
    return [trial for trial in trials if trial.state == State.FAILED and (finite or trial.spent)]
