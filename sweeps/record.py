"""A sweep's place in MLflow: its run, below which its trials record themselves, made to agree with the ledger."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghm import provenance
from ghm.nodes import Sight
from ghm.tracking import SPOOL, Spool, agree, shared_view
from sweeps.goal import Goal
from sweeps.ledger import Trial
from sweeps.space import title
from sweeps.states import State


@dataclass(frozen=True)
class Record:
    """Of the sweep `name`; `key` finds its MLflow run, `folder` holds one folder a trial."""

    name: str
    key: str
    folder: Path

    def begin(self, goal: Goal, swept: Sequence[str], group: str | None) -> None:
        """The sweep begins, or goes on; `group` is the key of `swept` by whose values its trials are compared."""
        spool = Spool(self.folder, Spool(self.folder).attempts() + 1)
        tags = {"sweep.name": self.name, "sweep.kind": "sweep", "sweep.objective": ",".join(goal.objectives)}
        tags |= {"sweep.direction": ",".join(goal.directions)}
        if goal.bounded:
            tags |= {"sweep.bounds": json.dumps({"at_most": dict(goal.at_most), "at_least": dict(goal.at_least)})}
        tags |= provenance.origin(provenance.source()["commit"])
        spool.start(self.name, tags, key=self.key)
        spool.share(self.key, shared_view(self.key, self.name, goal.objectives, swept, group, goal.ascending))

    def finish(self, state: State, trials: Sequence[Trial]) -> None:
        """The sweep ended so, for now or for good, and its trials are as the ledger has them.

        One that was ended in the middle, on a node whose folder this does not see, left its MLflow run running.
        """
        for trial in trials:
            spool = Spool(self.trial(trial.number))
            if trial.state == State.QUEUED and trial.epochs and spool.key is None:
                spool.join(self._trial_key(trial.number))
        agree({self.trial(trial.number): trial.state for trial in trials})
        Spool(self.folder, Spool(self.folder).attempts()).finish(state)

    def folders(self) -> list[Path]:
        """All that hold a record, the sweep's own first."""
        return [self.folder, *sorted(path.parent for path in self.folder.glob(f"[0-9]*/{SPOOL}"))]

    def context(self, trial: Trial, hub: str, sight: Sight) -> dict[str, Any]:
        """What a trial has to know to record itself and to report."""
        keys = {"record": self._trial_key(trial.number), "parent": self.key}
        seen = {"shared": sight.shared(), "mark": sight.mark, "epochs": max(trial.epochs, default=0)}
        return {"name": self.name, "attempt": trial.attempt, "hub": hub} | keys | seen

    def trial(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def failure(self, trial: Trial, label: str) -> None:
        """Of a trial that could not record its own end, or not even its beginning."""
        spool = Spool(self.trial(trial.number))
        if spool.state() == State.FAILED:
            return
        spool = Spool(self.trial(trial.number), max(spool.attempts(), 1))
        tags = {"sweep.name": self.name, "sweep.trial": trial.number, "sweep.params": json.dumps(trial.params)}
        if spool.key is None:
            spool.start(title(trial.number, label), tags, self.key, self._trial_key(trial.number))
        spool.set_tags({"error": trial.error[-4000:]})
        spool.finish(State.FAILED)

    def _trial_key(self, number: int) -> str:
        return f"{self.key}-{number:04d}"
