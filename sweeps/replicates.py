"""Several runs of a trial, each with a seed of its own: what they come to together, and who is out of the race."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from scipy import special

from ghm.interval import half_width
from sweeps.goal import Values

BY = ("mean", "median", "lower")


@dataclass(frozen=True)
class Replicates:
    """`count` runs of each trial, with the seeds `first`, `first + 1` and so on under the config's `key`.

    `by`: what the trial's value is of theirs: mean, median, or lower, the pessimistic end of the 95 % interval of
    their mean. `race`: a trial is dropped once the chance that it keeps up with the best is below it, see `dropped`;
    0: never.
    """

    count: int = 1
    by: str = "mean"
    race: float = 0.2
    key: str = "seed"
    first: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("replicates", self.count, 1), (self.key, self.first, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                where = f"hydra.sweeper.{name}" if name == "replicates" else name
                raise ValueError(f"{where}={value}: must be a whole number of at least {least}")
        if self.by not in BY:
            raise ValueError(f"hydra.sweeper.aggregate={self.by}: must be one of {', '.join(BY)}")
        number = isinstance(self.race, int | float) and not isinstance(self.race, bool)
        if not number or not 0 <= self.race <= 0.5:
            raise ValueError(f"hydra.sweeper.race={self.race}: must be a number from 0 (nobody is dropped) to 0.5")

    def run(self, trial: int, replicate: int) -> int:
        """The number of a run, unique in its sweep; with one run a trial, that of the trial."""
        return trial * self.count + replicate

    def of(self, run: int) -> tuple[int, int]:
        """Trial and replicate of a run."""
        return divmod(run, self.count)

    def seed(self, replicate: int) -> int | None:
        """None where the program's own seed stays as it is."""
        return None if self.count == 1 else self.first + replicate

    def seeded(self, overrides: list[str], seed: int | None) -> list[str]:
        """Those of a run, with its seed if it has one of its own."""
        if seed is None:
            return overrides
        own = [one for one in overrides if one.split("=")[0].lstrip("+") != self.key]
        return [*own, f"{self.key}={seed}"]

    def named(self, run: int) -> str:
        """As it is called in what a sweep says."""
        trial, replicate = self.of(run)
        return f"trial {trial}" if self.count == 1 else f"trial {trial}, {self.key} {self.seed(replicate)}"

    def value(self, runs: Sequence[Values], directions: Sequence[str]) -> Values:
        """Of a trial whose runs came to these values, for each objective."""
        return tuple(self._of(values, way) for values, way in zip(zip(*runs, strict=True), directions, strict=True))

    def _of(self, values: Sequence[float], direction: str) -> float:
        if self.by == "median":
            return median(values)
        if self.by == "mean" or len(values) < 2:
            return fmean(values)
        return fmean(values) - (half_width(values) if direction == "maximize" else -half_width(values))


@dataclass(frozen=True)
class Drop:
    """A trial is out of the race: `behind` is how much worse its mean over `seeds` seeds is than that of `leader`."""

    trial: int
    leader: int
    seeds: int
    behind: float
    chance: float  # that it keeps up

    def __str__(self) -> str:
        return f"out of the race: {self.behind:.4g} behind trial {self.leader} over {self.seeds} seeds"


def dropped(values: Mapping[int, Sequence[float]], running: Sequence[int], race: float) -> list[Drop]:
    """Which of the trials `running` are clearly worse than another.

    `values`: of every trial that was not dropped before, by number: the first objective of its runs, larger being
    better, the same seeds in the same order. A trial of n >= 2 runs is compared with the best of those that have as
    many, seed by seed: Student's t of the mean difference, one-sided. The variance of a difference is pooled over all
    that the best is compared with, as a pair of two seeds says next to nothing of its own; a pair that differs more
    counts with its own. What the tests of a race come to is measured in `tests/sweeps/test_replicates.py`.
    """
    drops = []
    by_count: dict[int, list[int]] = {}
    for trial in running:
        by_count.setdefault(len(values[trial]), []).append(trial)
    for count, trials in by_count.items():
        rivals = [one for one, theirs in values.items() if len(theirs) >= count]
        if count < 2 or len(rivals) < 2:
            continue
        leader = max(rivals, key=lambda one: (fmean(values[one][:count]), -one))
        pairs = [_differences(values[leader], theirs) for other, theirs in values.items() if other != leader]
        freedom = sum(len(pair) - 1 for pair in pairs)
        pooled = sum((len(pair) - 1) * variance(pair) for pair in pairs if len(pair) > 1) / freedom
        for trial in trials:
            if trial != leader:
                own = _differences(values[leader], values[trial])
                behind, error = fmean(own), math.sqrt(max(pooled, variance(own)) / count)
                chance = float(special.stdtr(freedom, -behind / error)) if error else float(behind <= 0)
                if chance < race:
                    drops.append(Drop(trial, leader, count, behind, chance))
    return drops


def _differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=False)]
