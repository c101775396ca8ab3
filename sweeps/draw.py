"""Where new points come from: those given by hand, then all of a small space, or what a sampler proposes of a large."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from sweeps.goal import Goal
from sweeps.ledger import Ledger
from sweeps.space import MANY, Params, Space
from sweeps.trials import identity

AGAIN = 20  # draws of a sampler that proposes known points, before others are taken


@dataclass(frozen=True)
class Search:
    """How trials are chosen: from which space, by which sampler, and which are stopped early.

    `make_sampler(number, again)` makes the sampler that draws trial `number`, for the `again`th time where what it
    drew before is known already. A fresh one each time, so that a sweep that was killed and continued draws what it
    would have drawn. `lasting` takes its place where a sampler has a state of its own: one for the whole sweep, which
    after a restart draws again what it drew (`Ledger`). `first` are settings to try before any other; keys that they
    leave out are drawn.
    """

    space: Space
    make_sampler: Callable[[int, int], BaseSampler]
    pruner: BasePruner
    first: list[Params] = field(default_factory=list)
    lasting: BaseSampler | None = None

    def given(self) -> list[Params]:
        """The settings of `first` that this space holds. ValueError for what it does not know."""
        return [params for params in map(self.space.given, self.first) if params is not None]

    def points(self, n_trials: int) -> list[Params] | None:
        """Every point of a space of at most `n_trials` points, those given by hand first; None for a larger one."""
        points = self.space.points(most=n_trials)
        if points is not None:
            points.sort(key=lambda point: not any(some.items() <= point.items() for some in self.given()))
        return points

    def total(self, ledger: Ledger, n_trials: int) -> int:
        """How many trials the study is to hold: `n_trials`, or one for each point of a smaller space."""
        points = self.points(n_trials)
        if points is None:
            return n_trials
        tried = {identity(trial.params) for trial in ledger.trials}
        return len(ledger.trials) + len([point for point in points if identity(point) not in tried])

    def left_out(self, n_trials: int) -> str:
        """What is to be said where values were listed of which not all combinations are run; empty where they are."""
        listed = all(dimension.key == "seed" or dimension.listed for dimension in self.space.dimensions)
        points = self.space.points(most=MANY) if listed else None
        if points is None or len(points) <= n_trials:
            return ""
        some = f"hydra.sweeper.n_trials={n_trials}: of {len(points)} points so many are run, as the sampler draws them"
        return f"{some}; hydra.sweeper.n_trials={len(points)} runs all"

    def preview(self, n_trials: int, first: int) -> tuple[list[Params], bool]:
        """Every point of a space of at most `n_trials`, and that these are all.

        Of a larger one the `first` points that would be drawn as long as nothing is known of any.
        """
        points = self.points(n_trials)
        if points is not None:
            return points, True
        return [self._drawn(number) for number in range(min(first, n_trials))], False

    def _drawn(self, number: int) -> Params:
        given = self.given()
        study = optuna.create_study(sampler=self.make_sampler(number, 0))
        if number < len(given):
            study.enqueue_trial(given[number])
        return self.space.suggest(study.ask())

    def draw(self, ledger: Ledger, n_trials: int) -> int | None:
        """A point that is not in the ledger yet, as a trial of `ledger.memory`; None if there is none left."""
        tried = {identity(trial.params) for trial in ledger.trials}
        for fixed, sampler in self._proposals(len(ledger.trials), tried, n_trials):
            ledger.memory.sampler = sampler
            if fixed:
                ledger.memory.enqueue_trial(fixed)
            copy = ledger.memory.ask()
            if identity(self.space.suggest(copy)) not in tried:
                return copy._trial_id
            ledger.memory._storage.set_trial_state_values(copy._trial_id, TrialState.FAIL)  # samplers pass it over
        return None

    def _proposals(self, number: int, tried: set[str], n_trials: int) -> Iterator[tuple[Params, BaseSampler]]:
        """What is fixed of a point, and who draws the rest."""
        points, anywhere = self.points(n_trials), RandomSampler(seed=number)
        if points is not None:
            yield from ((point, anywhere) for point in points if identity(point) not in tried)
            return
        if number < len(given := self.given()):
            yield given[number], self.lasting or self.make_sampler(number, 0)
        for again in range(AGAIN):
            yield {}, self.lasting or self.make_sampler(number, again)
        # The sampler insists on what is known: any other point is worth more than none.
        rest = self.space.points(most=MANY)
        if rest is None:
            yield from (({}, anywhere) for _ in range(AGAIN))
        else:
            random.Random(number).shuffle(rest)
            yield from ((point, anywhere) for point in rest if identity(point) not in tried)


def refuse_unfit(goal: Goal, sampler: BaseSampler, pruner: BasePruner) -> None:
    """ValueError for a sampler or pruner that knows one objective alone, where there are several."""
    if not goal.several:
        return
    count = len(goal.objectives)
    if not isinstance(pruner, NopPruner):
        raise ValueError(
            f"hydra/sweeper/pruner: {type(pruner).__name__} judges one objective, and here are {count}; take nop"
        )
    try:
        optuna.create_study(directions=goal.directions, sampler=sampler).ask().suggest_float("x", 0, 1)
    except ValueError as error:
        raise ValueError(
            f"hydra/sweeper/sampler: {type(sampler).__name__} searches for one objective, and here are {count}; "
            "take nsgaii, nsgaiii, tpe, gp, random or qmc"
        ) from error
