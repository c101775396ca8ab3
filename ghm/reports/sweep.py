"""A sweep as the tracker holds it: one row a trial, one curve a trial."""

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import Any

import pandas as pd

from ghm.reports.comparison import Arm
from ghm.secrets import hidden
from ghm.tracking import Record, Tracker
from sweeps.goal import Goal
from sweeps.states import State

MOST = 5  # configurations of one group that a verdict compares
CHANCE, BATCH = "val/chance_AP50", "batch_size"  # params, as they are of the data and of the settings
Curve = list[tuple[int, float]]
Curves = dict[str, dict[int, Curve]]
AT_ONCE = 8  # questions to the tracker
ENDED = (State.DONE, State.PRUNED, State.FAILED)


@dataclass(frozen=True)
class SweepResult:
    """`trials`: a row for each ended trial, best first, with `trial`, `label`, `state`, `minutes`, the
    swept `keys`, the last value of every metric, and `allowed`, whether it keeps all bounds. `curves`: (epoch, value)
    by metric and trial, of the first objective."""

    name: str
    run_id: str  # of the sweep itself
    key: str  # of its record
    goal: Goal
    keys: list[str]
    trials: pd.DataFrame
    curves: Curves
    about: dict[str, str]  # when, by whom, on what, by which command
    seeds: dict[int, dict[int, float]] = field(default_factory=dict)  # of trials of several runs: objective by seed
    runs: dict[int, list[Curve]] = field(default_factory=dict)  # and the curve of each run, of the first objective
    recorded: dict[int, str] = field(default_factory=dict)  # id of the run that recorded the config, by trial

    @property
    def objective(self) -> str:
        """The first one, by which trials are ordered."""
        return self.goal.objectives[0]

    @property
    def done(self) -> pd.DataFrame:
        return self.trials[(self.trials["state"] == State.DONE) & self.trials[self.objective].notna()]

    @property
    def allowed(self) -> pd.DataFrame:
        """Those that count: done, and within all bounds."""
        return self.done[self.done["allowed"]]

    @property
    def front(self) -> list[int]:
        """The trials that no other beats in all objectives, best in the first one first."""
        values = self.allowed[list(self.goal.objectives)].itertuples(index=False, name=None)
        return self.goal.front(dict(zip(self.allowed["trial"], values, strict=True)))

    @property
    def group(self) -> str | None:
        """The first swept key that chooses between names, of which there are several."""
        names = (key for key in self.keys if self.trials[key].dropna().map(type).eq(str).all())
        return next((key for key in names if self.trials[key].nunique() > 1), None)

    @property
    def groups(self) -> dict[int, str]:
        """What is compared, by trial: its value of `group`."""
        if self.group is None:
            return dict.fromkeys(self.trials["trial"], "all")
        return dict(zip(self.trials["trial"], self.trials[self.group].astype(str), strict=True))

    @cached_property
    def arms(self) -> list[Arm]:
        """The configurations, whatever their seed, best mean first; what a race dropped stands behind."""
        arms: dict[str, list[dict[str, Any]]] = {}
        for row in self.trials.to_dict("records"):
            raced = row["state"] == State.PRUNED and len(self.seeds.get(row["trial"], ())) > 1
            counts = row["state"] == State.DONE and row["allowed"] and row[self.objective] == row[self.objective]
            if counts or raced:
                same = {key: row[key] for key in self.keys if key != "seed"}
                arms.setdefault(json.dumps(same, default=str), []).append(row)
        groups, most = self.groups, max(map(len, self.seeds.values()), default=1)
        made = [self._arm(rows, groups[rows[0]["trial"]], most) for rows in arms.values()]
        return sorted(made, key=lambda arm: (arm.looks > 1, arm.mean if self.goal.ascending else -arm.mean))

    def _arm(self, rows: list[dict[str, Any]], group: str, most: int) -> Arm:
        """Of the trials that differ in their seed alone; no trial has more than `most` seeds."""
        first = rows[0]
        values = self.seeds.get(first["trial"]) or {int(row.get("seed") or 0): row[self.objective] for row in rows}
        label = re.sub(r"(^| )seed=\d+", "", first["label"]).strip() or "defaults"
        looks = 1 if first["state"] == State.DONE else most - 1
        trials = tuple(int(row["trial"]) for row in rows)
        return Arm(label, group, values, trials, looks)

    def seed_curves(self, arm: Arm) -> list[Curve]:
        """Of the first objective, one for each seed of a configuration."""
        known = self.curves[self.objective]
        return [curve for trial in arm.trials for curve in self.runs.get(trial) or [known.get(trial, [])]]

    @property
    def rivals(self) -> list[Arm]:
        """What the verdict compares: the best configuration of each group; of a single group, its best ones."""
        best = {arm.group: arm for arm in reversed(self.arms)}
        return list(best.values())[::-1] if len(best) > 1 else self.arms[:MOST]

    @property
    def chance(self) -> float:
        """AP50 of boxes that know the data but not the image, see `scoring.chance`."""
        return float(self.trials[CHANCE].max())

    @property
    def learned(self) -> bool:
        """Whether any trial's boxes beat chance."""
        return bool(len(self.done)) and float(self.done["val/AP50"].max()) > self.chance


def load(tracker: Tracker, name: str, key: str | None = None) -> SweepResult:
    """Read a sweep from the tracker, by the key of its record, or by its name where this tells which it is.

    ValueError when the tracker holds none of this name, several, or one without trials.
    """
    parent = _parent(tracker, name, key)
    tags = parent.data.tags
    bounds = json.loads(tags.get("sweep.bounds", "{}"))
    # Older sweeps do not say their direction, and were all of AP.
    goal = Goal.of(tags["sweep.objective"].split(","), tags.get("sweep.direction", "maximize").split(","), **bounds)
    objective = goal.objectives[0]
    children, below = _below(tracker, parent)
    everyone = [one.info.run_id for one in [*children, *chain(*below.values())]]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        curves = dict(zip(everyone, threads.map(lambda one: tracker.history(one, objective), everyone), strict=True))
    ended = [one for one in children if one.data.tags.get("sweep.state") in ENDED and "sweep.trial" in one.data.tags]
    read = {int(one.data.tags["sweep.trial"]): _read(one, below, curves, objective) for one in ended}
    if not read:
        raise ValueError(f"hydra.sweeper.study_name={name}: no trial of this sweep has ended; run it on")
    return SweepResult(
        name=name,
        run_id=parent.info.run_id,
        key=tags["ghm.key"],
        goal=goal,
        keys=list(dict.fromkeys(chain(*(one.params for one in read.values())))),
        trials=_table([one.row for one in read.values()], goal),
        curves={objective: {trial: one.curve for trial, one in read.items()}},
        about=_about(parent, children),
        seeds={trial: one.seeds for trial, one in read.items() if one.seeds},
        runs={trial: one.runs for trial, one in read.items() if one.runs},
        recorded={trial: one.recorded for trial, one in read.items()},
    )


def _parent(tracker: Tracker, name: str, key: str | None) -> Record:
    """The run of the sweep itself."""
    where = f"hydra.sweeper.study_name={name}: {hidden(tracker.uri)}"
    own = None if key is None else tracker.find(key)
    found = tracker.sweeps(name) if own is None else [own]
    if not found:
        raise ValueError(f"{where} holds no sweep of this name; run it first")
    if len(found) > 1:
        raise ValueError(f"{where} holds {len(found)} sweeps of this name; report where it was run, in its `runs`")
    return found[0]


@dataclass(frozen=True)
class _Trial:
    """What the tracker holds of a trial; the fields of `SweepResult` have the same names."""

    row: dict[str, Any]
    params: dict[str, Any]
    curve: Curve
    runs: list[Curve]
    seeds: dict[int, float]
    recorded: str


def _read(run: Record, below: dict[str, list[Record]], curves: dict[str, Curve], objective: str) -> _Trial:
    """A trial that has ended, of its own run and of those of its seeds."""
    tags, own_runs = run.data.tags, below.get(run.info.run_id, [])
    trained = own_runs or [run]  # whose params are those of trainings
    minutes = [(one.info.end_time - one.info.start_time) / 60_000 for one in trained if one.info.end_time]
    row = {
        "trial": int(tags["sweep.trial"]),
        "label": run.info.run_name.rsplit(" #", 1)[0],
        "state": tags["sweep.state"],
        "minutes": sum(minutes),
        "run_id": run.info.run_id,
        "error": tags.get("error", ""),
    }
    params = json.loads(tags["sweep.params"])
    row |= params | run.data.metrics
    row |= {key: float(value) for key, value in trained[0].data.params.items() if key in (CHANCE, BATCH)}
    runs = [curves[one.info.run_id] for one in own_runs if curves[one.info.run_id]]
    mean = [(epoch, fmean(values)) for epoch, values in by_epoch(runs or [curves[run.info.run_id]])]
    done = [one.data for one in own_runs if one.data.tags.get("sweep.state") == State.DONE]
    seeds = {int(one.params["seed"]): one.metrics[objective] for one in done}
    return _Trial(row, params, mean, runs, seeds, trained[0].data.tags.get("reused", trained[0].info.run_id))


def _table(rows: list[dict[str, Any]], goal: Goal) -> pd.DataFrame:
    """A row for each trial, best first; last what has no value, and before it what breaks a bound."""
    columns = ["trial", "state", *goal.metrics, "val/AP50", "val/AP75", CHANCE, BATCH, "time/images_per_s"]
    trials = pd.DataFrame(rows).reindex(columns=list(dict.fromkeys([*columns, *pd.DataFrame(rows).columns])))
    trials["allowed"] = [not any(one > 0 for one in goal.violations(row)) for row in trials.to_dict("records")]
    objective = goal.objectives[0]
    last = trials[objective].isna() * 2 + ~trials["allowed"]
    order = trials.assign(last=last).sort_values(["last", objective], ascending=[True, goal.ascending]).index
    return trials.loc[order].reset_index(drop=True)


def _below(tracker: Tracker, parent: Record) -> tuple[list[Record], dict[str, list[Record]]]:
    """The trials of a sweep, and by the id of a trial's run those of its seeds."""
    known = tracker.of_sweep(parent.data.tags["ghm.key"])
    below: dict[str, list[Record]] = {}
    for one in known:
        below.setdefault(one.data.tags["mlflow.parentRunId"], []).append(one)
    return below.pop(parent.info.run_id, []), below


def by_epoch(curves: Iterable[Curve]) -> list[tuple[int, list[float]]]:
    """The values of several runs after each epoch, as far as each goes."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(value)
    return sorted(values.items())


def _about(parent: Record, children: list[Record]) -> dict[str, str]:
    """What a reader asks of a sweep beside its numbers; what an older record does not say is left out."""
    tags = parent.data.tags
    data = {
        f"{one.dataset.name} {one.dataset.digest}: {_counts(one.dataset.profile)}": None
        for run in children[:1]
        for one in run.inputs.dataset_inputs
    }
    begun = datetime.fromtimestamp(parent.info.start_time / 1000).strftime("%Y-%m-%d %H:%M")
    told = {
        "command": tags.get("mlflow.source.name", ""),
        "begun": begun,
        "by": tags.get("mlflow.user", ""),
        "commit": tags.get("mlflow.source.git.commit", ""),
        "data": "; ".join(data),
        "machine": tags.get("machine", ""),
    }
    return {name: text for name, text in told.items() if text}


def _counts(profile: str) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in json.loads(profile).items())
