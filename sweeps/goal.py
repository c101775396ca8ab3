"""What a sweep is after: objectives, each with a direction, and bounds that a trial must keep to count."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = tuple[float, ...]


@dataclass(frozen=True)
class Goal:
    """`objectives`: names of metrics, the first of which is reported after each epoch. `at_most`, `at_least`: bounds
    on metrics, by name. ValueError where directions do not fit the objectives, or a bound is no number.
    """

    objectives: tuple[str, ...]
    directions: tuple[str, ...]  # maximize or minimize
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, objective: Any, direction: Any, **bounds: Mapping[str, float]) -> "Goal":
        """As a config has it: one or several of each."""
        objectives, directions = (
            tuple(map(str, one)) if isinstance(one, Sequence) and not isinstance(one, str) else (str(one),)
            for one in (objective, direction)
        )
        return cls(objectives, directions, **bounds)

    def __post_init__(self) -> None:
        shown = ",".join(map(str, self.directions))
        if any(one not in ("maximize", "minimize") for one in self.directions):
            raise ValueError(f"hydra.sweeper.direction={shown}: must be maximize or minimize")
        if len(self.directions) != len(self.objectives):
            raise ValueError(
                f"hydra.sweeper.direction={shown}: objective={','.join(self.objectives)} needs one direction for each; "
                f"give {len(self.objectives)}"
            )
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objective={','.join(self.objectives)}: names one twice; drop it")
        for name in ("at_most", "at_least"):
            for metric, bound in getattr(self, name).items():
                if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                    raise ValueError(f"hydra.sweeper.{name}: {metric}={bound}: must be a number")

    def __str__(self) -> str:
        """As in: it searches for `the largest val/AP`."""
        sizes = {"maximize": "largest", "minimize": "smallest"}
        named = zip(self.objectives, self.directions, strict=True)
        wanted = " and ".join(f"the {sizes[way]} `{name}`" for name, way in named)
        bounds = [f"`{name}` at most {bound:g}" for name, bound in self.at_most.items()]
        bounds += [f"`{name}` at least {bound:g}" for name, bound in self.at_least.items()]
        return f"{wanted} with {' and '.join(bounds)}" if bounds else wanted

    @property
    def several(self) -> bool:
        return len(self.objectives) > 1

    @property
    def ascending(self) -> bool:
        """Whether the smallest first objective is the best."""
        return self.directions[0] == "minimize"

    @property
    def bounded(self) -> bool:
        return bool(self.at_most or self.at_least)

    @property
    def metrics(self) -> list[str]:
        """All that it looks at, objectives first."""
        return list(dict.fromkeys([*self.objectives, *self.at_most, *self.at_least]))

    def violations(self, metrics: Mapping[str, float]) -> Values:
        """By how much each bound is broken; 0 or less where it is kept, as Optuna has it. KeyError for no metric."""
        above = [metrics[name] - bound for name, bound in self.at_most.items()]
        return (*above, *(bound - metrics[name] for name, bound in self.at_least.items()))

    def rank(self, values: Values) -> Values:
        """Smaller is better, first objective first."""
        return tuple(-one if way == "maximize" else one for one, way in zip(values, self.directions, strict=True))

    def front(self, points: Mapping[int, Values]) -> list[int]:
        """Of points by number, those that no other is better than in one objective and as good in all; best first."""
        ranked = {number: self.rank(values) for number, values in points.items()}
        ordered = sorted(ranked, key=lambda number: (ranked[number], number))
        best: list[int] = []
        for number in ordered:  # who is better in all stands before
            if not any(_dominates(ranked[other], ranked[number]) for other in best):
                best.append(number)
        return best


def _dominates(one: Values, other: Values) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
