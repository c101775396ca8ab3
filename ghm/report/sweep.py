"""A sweep as the tracker holds it: one row a trial, one curve a trial."""

import json
from dataclasses import dataclass

import pandas as pd

from ghm.secrets import hidden
from ghm.tracking import Tracker
from sweeps.states import State

Curves = dict[str, dict[int, list[tuple[int, float]]]]


@dataclass(frozen=True)
class SweepResult:
    """`trials`: a row for each ended trial, best first, with `trial`, `label`, `state`, `minutes`, the
    swept `keys` and the last value of every metric. `curves`: (epoch, value) by metric and trial."""

    name: str
    run_id: str  # of the sweep itself
    objective: str
    keys: list[str]
    trials: pd.DataFrame
    curves: Curves

    @property
    def done(self) -> pd.DataFrame:
        return self.trials[(self.trials["state"] == State.DONE) & self.trials[self.objective].notna()]

    @property
    def groups(self) -> dict[int, str]:
        """What is compared, by trial: the value of the first swept key that chooses between names."""
        for key in self.keys:
            if self.trials[key].dropna().map(type).eq(str).all():
                return dict(zip(self.trials["trial"], self.trials[key].astype(str), strict=True))
        return dict.fromkeys(self.trials["trial"], "all")

    @property
    def chance(self) -> float:
        """AP50 of boxes that know the data but not the image, see `scoring.chance`."""
        return float(self.trials["val/chance_AP50"].max())

    @property
    def learned(self) -> bool:
        """Whether the best trial's boxes beat chance."""
        return bool(len(self.done)) and float(self.done["val/AP50"].iloc[0]) > self.chance


def load(tracker: Tracker, name: str, key: str | None = None, maximize: bool = True) -> SweepResult:
    """Read a sweep from the tracker, by the key of its record, or by its name where this tells which it is.

    ValueError when the tracker holds none of this name, several, or one without trials.
    """
    where = f"hydra.sweeper.study_name={name}: {hidden(tracker.uri)}"
    own = None if key is None else tracker.find(key)
    found = tracker.sweeps(name) if own is None else [own]
    if not found:
        raise ValueError(f"{where} holds no sweep of this name; run it first")
    if len(found) > 1:
        raise ValueError(f"{where} holds {len(found)} sweeps of this name; report where it was run, in its `runs`")
    [parent] = found
    objective = parent.data.tags["sweep.objective"]
    rows: list[dict[str, object]] = []
    curves: Curves = {objective: {}}
    keys: dict[str, None] = {}  # in order of appearance
    for run in tracker.children(parent.info.run_id):
        state = run.data.tags.get("sweep.state")
        if state not in (State.DONE, State.PRUNED, State.FAILED) or "sweep.trial" not in run.data.tags:
            continue
        trial, params = int(run.data.tags["sweep.trial"]), json.loads(run.data.tags["sweep.params"])
        keys |= dict.fromkeys(params)
        minutes = (run.info.end_time - run.info.start_time) / 60_000
        error = run.data.tags.get("error", "").strip().splitlines()[-1:]
        row = {"trial": trial, "label": run.info.run_name.split(" ", 1)[-1], "state": state, "minutes": minutes}
        rows.append(row | {"run_id": run.info.run_id, "error": "".join(error)} | params | run.data.metrics)
        for metric, of_trial in curves.items():
            of_trial[trial] = tracker.history(run.info.run_id, metric)
    if not rows:
        raise ValueError(f"hydra.sweeper.study_name={name}: no trial of this sweep has ended; run it on")
    columns = ["trial", "state", objective, "val/AP50", "val/AP75", "val/chance_AP50", "time/images_per_s"]
    trials = pd.DataFrame(rows).reindex(columns=list(dict.fromkeys([*columns, *pd.DataFrame(rows).columns])))
    trials = trials.sort_values(objective, ascending=not maximize, na_position="last").reset_index(drop=True)
    return SweepResult(name, parent.info.run_id, objective, list(keys), trials, curves)
