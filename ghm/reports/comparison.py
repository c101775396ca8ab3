"""How sure one may be that one configuration is better than another, from runs of each with several seeds."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special, stats

from ghm.interval import half_width

# Chance of calling two equal configurations different, over all pairs that are compared. Below the usual .05, so that
# of 200 sweeps over equal losses no more than 10 say so but by rare accident: at .05 every other 200 would have more.
LEVEL = 0.03
POWER = 0.8  # chance of finding a difference as large as the one that was seen, for `Comparison.more`


@dataclass(frozen=True)
class Arm:
    """A configuration and the objective of each of its runs, by seed. `looks`: how often it might have been dropped
    in a race before it was; 1: it was not."""

    label: str
    group: str
    values: Mapping[int, float]
    trials: tuple[int, ...] = ()
    looks: int = 1

    @property
    def mean(self) -> float:
        return fmean(self.values.values())

    @property
    def half(self) -> float | None:
        """Of the 95 % interval of the mean (Student's t); None for one seed."""
        return half_width(list(self.values.values())) if len(self.values) > 1 else None

    @property
    def shown(self) -> str:
        """Mean and half of its 95 % interval."""
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


@dataclass(frozen=True)
class Comparison:
    """`one` against `other`: a mean `difference` over `seeds` seeds, above 0 where `one` is better, with the ends of
    its 95 % interval; `effect` is it in standard deviations of a single run; `chance` that equal configurations
    differ as much or more, corrected for the number of pairs; `more`: seeds of each that would tell, beside those.
    """

    one: Arm
    other: Arm
    seeds: int
    difference: float
    low: float
    high: float
    effect: float
    chance: float
    more: int

    @property
    def different(self) -> bool:
        return self.chance <= LEVEL


def compare(arms: Sequence[Arm], ascending: bool = False) -> list[Comparison]:
    """Every pair of arms that has two seeds or more in common; Holm's correction over all of them (Holm 1979).

    Seeds are paired: Student's t of the differences. Where a race dropped one of a pair, the test had as many chances
    as the race had looks, and its p counts so many times (Bonferroni). `ascending`: smaller is better.
    """
    pairs = [(one, other, _paired(one, other, ascending)) for one, other in itertools.combinations(arms, 2)]
    pairs = [(one, other, values) for one, other, values in pairs if len(values) > 1]
    chances = [min(1.0, _chance(values) * max(one.looks, other.looks)) for one, other, values in pairs]
    corrected = _holm(chances)
    return [
        _comparison(one, other, values, chance, len(pairs))
        for (one, other, values), chance in zip(pairs, corrected, strict=True)
    ]


def _paired(one: Arm, other: Arm, ascending: bool) -> list[float]:
    sign = -1 if ascending else 1
    return [sign * (one.values[seed] - other.values[seed]) for seed in one.values if seed in other.values]


def _chance(values: Sequence[float]) -> float:
    """Two-sided p of a mean of 0."""
    spread = stdev(values)
    if not spread:
        return float(fmean(values) == 0)
    return float(2 * stats.t.sf(abs(fmean(values)) / (spread / math.sqrt(len(values))), len(values) - 1))


def _holm(chances: Sequence[float]) -> list[float]:
    corrected, worst = [0.0] * len(chances), 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        worst = max(worst, min(1.0, chances[index] * (len(chances) - place)))
        corrected[index] = worst
    return corrected


def _comparison(one: Arm, other: Arm, values: Sequence[float], chance: float, pairs: int) -> Comparison:
    count, mean, spread = len(values), fmean(values), stdev(values)
    half = half_width(values)
    single = math.sqrt((stdev(one.values.values()) ** 2 + stdev(other.values.values()) ** 2) / 2)
    effect = mean / single if single else math.copysign(math.inf, mean) if mean else 0.0
    return Comparison(
        one, other, count, mean, mean - half, mean + half, effect, chance, max(1, _needed(mean, spread, pairs) - count)
    )


def _needed(mean: float, spread: float, pairs: int) -> int:
    """Seeds of each by which a difference like this would be found with a chance of `POWER`."""
    if not mean:
        return 10**6
    quantiles = special.ndtri(1 - LEVEL / (2 * pairs)) + special.ndtri(POWER)
    return math.ceil((quantiles * spread / mean) ** 2) + 2  # the normal's quantiles are a little short of Student's
