"""One configuration of a sweep and what became of it, and how Optuna's storage keeps that.

As fields of Optuna's trial or, where it has none, as their user attributes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from optuna.trial import FrozenTrial, TrialState

from ghm.job import canonical
from sweeps.goal import Values
from sweeps.space import Params
from sweeps.states import State

BOUNDS = "constraints"  # where Optuna's samplers find what a trial breaks, among its system attributes
ATTEMPT, ERROR, SPENT, RUNS = "attempt", "error", "attempts_spent", "runs"
STATES = {
    State.QUEUED: TrialState.WAITING,
    State.RUNNING: TrialState.RUNNING,
    State.DONE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


@dataclass
class Run:
    """One run of a trial, or its only one. `attempt` is the one that runs or is to run next."""

    attempt: int = 1
    epochs: int = 0  # reported
    values: Values = ()  # once it has ended, and the trial has not
    violations: Values = ()
    running: bool = field(default=False, compare=False)  # not kept
    reused: bool = False  # another run, which was the same, counts in its place


@dataclass
class Trial:
    """One configuration and what became of it.

    `error` is what a failed trial ended of, its last line the reason, or why it was pruned; `spent` says that not the
    task raised it: its process or machine was lost once too often.
    """

    number: int
    params: Params
    state: State = State.QUEUED
    runs: dict[int, Run] = field(default_factory=dict)  # by replicate, as far as they were begun; see `run`
    epochs: dict[int, float] = field(default_factory=dict)  # of the first run: the first objective after each
    values: Values = ()  # of all objectives
    error: str = ""
    spent: bool = False
    violations: Values = ()  # of the bounds; above 0 where one is broken

    def run(self, replicate: int) -> Run:
        return self.runs.setdefault(replicate, Run())

    @property
    def over(self) -> bool:
        return self.state not in (State.QUEUED, State.RUNNING)

    @property
    def ended(self) -> list[Run]:
        """The runs that ended, up to the first that has not."""
        return list(takewhile(lambda run: bool(run.values), (self.runs[one] for one in sorted(self.runs))))

    @property
    def value(self) -> float | None:
        """Of the first objective."""
        return self.values[0] if self.values else None

    @property
    def allowed(self) -> bool:
        """Whether it keeps all bounds."""
        return all(one <= 0 for one in self.violations)

    @property
    def reason(self) -> str:
        return (self.error.strip().splitlines() or [""])[-1]


def identity(params: Params) -> str:
    """Equal for equal points of a space, however they are written: 1.0 is 1."""
    return json.dumps(canonical(params), sort_keys=True)


def violations(trial: FrozenTrial) -> Sequence[float]:
    """For Optuna's samplers: what a ledger wrote of a trial's bounds."""
    known: Sequence[float] = trial.system_attrs.get(BOUNDS, ())
    return known


def trial_of(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    states = {there: here for here, there in STATES.items()}
    return Trial(
        frozen.number,
        frozen.params or dict(frozen.system_attrs.get("fixed_params", {})),
        states[frozen.state],
        _runs(frozen),
        dict(frozen.intermediate_values),
        tuple(frozen.values or ()) if frozen.state.is_finished() else (),
        attributes.get(ERROR, ""),
        attributes.get(SPENT, False),
        tuple(frozen.system_attrs.get(BOUNDS, ())),
    )


def _runs(frozen: FrozenTrial) -> dict[int, Run]:
    runs = {0: Run()}
    for replicate, kept in frozen.user_attrs.get(RUNS, {}).items():
        values, violated = (tuple(kept.get(name, ())) for name in ("values", "violations"))
        reused = kept.get("reused", False)
        runs[int(replicate)] = Run(kept["attempt"], kept["epochs"], values, violated, reused=reused)
    runs[0].attempt, runs[0].epochs = frozen.user_attrs.get(ATTEMPT, 1), len(frozen.intermediate_values)
    return runs
