"""Who is ahead of whom, in trainings that differ in nothing else."""

import json
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ghm.reports.sweep import SweepResult

Runs = list[tuple[dict[str, Any], float]]  # what each was given, and its value


@dataclass(frozen=True)
class Wins:
    """How often one group was ahead of another (a tie is a half), of `pairs` that are equal in all else."""

    ahead: float
    pairs: int

    @property
    def share(self) -> float:
        return self.ahead / self.pairs if self.pairs else 0.5

    def __str__(self) -> str:
        return f"{self.ahead:g} of {self.pairs}" if self.pairs else ""


def matrix(sweep: SweepResult) -> dict[str, dict[str, Wins]]:
    """By group and group; empty where no two groups have several trainings that are equal in seed and all else.

    Settings that one of two groups does not have are left out; of trainings that are equal then, the mean counts.
    """
    runs: dict[str, Runs] = {}
    groups = sweep.groups
    for row in sweep.allowed.to_dict("records"):
        params = {key: row[key] for key in sweep.keys if key != sweep.group and row[key] == row[key]}
        seeds = sweep.seeds.get(row["trial"])
        own = [(params | {"seed": seed}, value) for seed, value in seeds.items()] if seeds else []
        runs.setdefault(groups[row["trial"]], []).extend(own or [(params, float(row[sweep.objective]))])
    found = {one: {other: _wins(sweep, runs[one], runs[other]) for other in runs if other != one} for one in runs}
    return found if any(wins.pairs > 1 for row in found.values() for wins in row.values()) else {}


def _wins(sweep: SweepResult, one: Runs, other: Runs) -> Wins:
    shared = [set.intersection(*(set(params) for params, _ in runs)) for runs in (one, other)]
    keys = sorted(set.intersection(*shared))
    mine, theirs = (_cells(runs, keys) for runs in (one, other))
    sign = -1 if sweep.goal.ascending else 1
    both = [(fmean(mine[cell]), fmean(theirs[cell])) for cell in mine.keys() & theirs.keys()]
    ahead = sum(1.0 if sign * (a - b) > 0 else 0.5 if a == b else 0.0 for a, b in both)
    return Wins(ahead, len(both))


def _cells(runs: Runs, keys: list[str]) -> dict[str, list[float]]:
    cells: dict[str, list[float]] = {}
    for params, value in runs:
        cells.setdefault(json.dumps([params[key] for key in keys], default=str), []).append(value)
    return cells
