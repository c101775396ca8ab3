"""What a sweep may use, and what it has used over all its commands. Nothing begins that would not end within it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """`hydra.sweeper.budget`; None is no limit. Trials have one of their own, `hydra.sweeper.n_trials`."""

    hours: float | None = None  # while its command runs
    epochs: int | None = None  # of all trials together
    gpu_hours: float | None = None  # of the GPUs that running trials hold

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
            if value is not None and not (number and (key != "epochs" or isinstance(value, int))):
                kind = "a whole number" if key == "epochs" else "a number"
                raise ValueError(f"hydra.sweeper.budget.{key}={value}: must be {kind} above 0, or null for no limit")

    def check(self, gpus: float) -> None:
        """ValueError for a limit on GPUs where a trial takes none."""
        if self.gpu_hours is not None and not gpus:
            raise ValueError(
                f"hydra.sweeper.budget.gpu_hours={self.gpu_hours}: trials take no GPU here; "
                "give budget.hours or budget.epochs, or scaling.slot.gpus=1"
            )


@dataclass
class Used:
    """Of a budget, in seconds of time and of GPUs; epochs are in the ledger."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0


@dataclass
class _Running:
    begun: float  # when it started
    since: float  # when it last began an epoch
    longest: float  # seconds of its longest epoch but the first, which has more to do
    open: bool = True  # whether it is in an epoch now
    reports: int = 0


@dataclass
class Meter:
    """Measures one command of a sweep against its budget.

    An epoch is begun only where it ends within the budget together with those that other trials are in: it counts as
    one epoch, and as long as the longest of its trial, or for a first one as the longest first one so far.

    `before` is what earlier commands used, `gpus` what one trial holds, `epochs()` how many epochs are recorded.
    """

    budget: Budget
    gpus: float
    before: Used
    epochs: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(init=False)
    _ended: float = 0.0  # GPU seconds of trials that are over
    _first: float = 0.0  # seconds of the longest first epoch
    _running: dict[int, _Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    @property
    def used(self) -> Used:
        now = self.clock()
        held = self._ended + sum(now - one.begun for one in self._running.values())
        return Used(self.before.seconds + now - self._begun, self.before.gpu_seconds + held * self.gpus)

    def started(self, trial: int) -> None:
        now = self.clock()
        self._running[trial] = _Running(now, now, self._first)

    def reported(self, trial: int) -> None:
        """A trial is between two epochs, or at its end."""
        one, now = self._running[trial], self.clock()
        took = now - one.since
        if one.reports == 0:
            self._first = max(self._first, took)
        # The first has more to do before it; until the second is over nobody knows how much.
        one.longest = took if one.reports < 2 else max(one.longest, took)
        one.since, one.open, one.reports = now, False, one.reports + 1

    def goes_on(self, trial: int) -> None:
        self._running[trial].open = True

    def ended(self, trial: int) -> None:
        one = self._running.pop(trial)
        self._ended += self.clock() - one.begun

    def allows(self, trial: int | None = None) -> bool:
        """Whether this trial may begin its next epoch; None: a trial that would start now."""
        now, used, limits = self.clock(), self.used, self.budget
        others = [one for number, one in self._running.items() if one.open and number != trial]
        needed = self._first if trial is None else self._running[trial].longest
        going = sum(max(one.longest - (now - one.since), 0.0) for one in others)
        return not (
            (limits.epochs is not None and self.epochs() + len(others) + 1 > limits.epochs)
            or (limits.hours is not None and used.seconds + needed > limits.hours * 3600)
            or (
                limits.gpu_hours is not None
                and used.gpu_seconds + (going + needed) * self.gpus > limits.gpu_hours * 3600
            )
        )

    def __str__(self) -> str:
        """What is used of what there is; empty where nothing is limited."""
        used, limits = self.used, self.budget
        parts = []
        if limits.epochs is not None:
            parts.append(f"{self.epochs()} of {limits.epochs} epochs")
        if limits.hours is not None:
            parts.append(f"{used.seconds / 3600:.2f} of {limits.hours:g} hours")
        if limits.gpu_hours is not None:
            parts.append(f"{used.gpu_seconds / 3600:.2f} of {limits.gpu_hours:g} GPU-hours")
        return ", ".join(parts)
