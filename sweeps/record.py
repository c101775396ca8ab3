"""A sweep's place in MLflow: its run, below which its trials record themselves, made to agree with the ledger."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ghm import provenance
from ghm.remote.nodes import Sight
from ghm.tracking import SPOOL, Spool, agree, data_of, shared_view
from sweeps.goal import Goal
from sweeps.replicates import Replicates
from sweeps.reuse import Found
from sweeps.space import title
from sweeps.states import State
from sweeps.trials import Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Of the sweep `name`; `key` finds its MLflow run, `folder` holds one folder a trial."""

    name: str
    key: str
    folder: Path
    seeds: Replicates = field(default_factory=Replicates)

    def compare_inputs(self, inputs: Mapping[str, Collection[str]]) -> None:
        """ValueError where the sweep was begun on other data; a warning where with other code or packages."""
        told = [entry["start"]["tags"].get("inputs") for entry in Spool(self.folder).entries() if "start" in entry]
        before = json.loads(told[-1]) if told and told[-1] else {}
        changed = [name for name, known in before.items() if name in inputs and sorted(inputs[name]) != known]
        data = [name for name in changed if name.endswith((" train", " val"))]
        if data:
            raise ValueError(
                f"hydra.sweeper.study_name={self.name}: {', '.join(data)} is not what it was when this sweep was "
                "begun, and what was trained on it would not compare; put it back, or give another name"
            )
        if changed:
            log.warning(
                "%s: not what it was when this sweep was begun; trials from now on may not compare with those before",
                ", ".join(changed),
            )

    def begin(self, goal: Goal, swept: Sequence[str], group: str | None, inputs: Mapping[str, Collection[str]]) -> None:
        """The sweep begins, or goes on; `group` is the key of `swept` by whose values its trials are compared.

        `inputs`: what its trainings read, by name, with what tells it apart.
        """
        spool = Spool(self.folder, Spool(self.folder).attempts() + 1)
        tags = {"sweep.name": self.name, "sweep.kind": "sweep", "sweep.objective": ",".join(goal.objectives)}
        tags |= {"sweep.direction": ",".join(goal.directions)}
        if goal.bounded:
            tags |= {"sweep.bounds": json.dumps({"at_most": dict(goal.at_most), "at_least": dict(goal.at_least)})}
        tags |= provenance.origin(provenance.source()["commit"])
        tags["inputs"] = json.dumps({name: sorted(told) for name, told in inputs.items()})
        spool.start(self.name, tags, key=self.key)
        seeds = self.seeds.count > 1
        spool.share(self.key, shared_view(self.key, self.name, goal.objectives, swept, group, goal.ascending, seeds))

    def finish(self, state: State, trials: Sequence[Trial]) -> None:
        """The sweep ended so, for now or for good, and its trials are as the ledger has them.

        One that was ended in the middle, on a node whose folder this does not see, left its MLflow run running.
        """
        states = {}
        for trial in trials:
            if trial.over and Spool(self.trial(trial.number)).state() == State.RUNNING:
                self.ended(trial)  # the ledger was written first
            states[self.trial(trial.number)] = trial.state
            for replicate, run in trial.runs.items():
                place = self.place(trial.number, replicate)
                spool = Spool(place)
                if trial.state == State.QUEUED and run.epochs and not run.values and spool.key is None:
                    spool.join(self.key_of(trial.number, replicate))
                if self.seeds.count > 1:
                    states[place] = State.DONE if run.values else trial.state
        agree(states)
        Spool(self.folder, Spool(self.folder).attempts()).finish(state)

    def folders(self) -> list[Path]:
        """All that hold a record, the sweep's own first."""
        below = [path.parent for runs in ("", "seed-*/") for path in self.folder.glob(f"[0-9]*/{runs}{SPOOL}")]
        return [self.folder, *sorted(below)]

    def context(self, trial: Trial, replicate: int, hub: str, sight: Sight) -> dict[str, Any]:
        """What a run has to know to record itself and to report; `folder` is its place."""
        run = trial.run(replicate)
        keys = {"record": self.key_of(trial.number, replicate), "parent": self._above(trial)}
        seen = {"shared": sight.shared(), "mark": sight.mark, "epochs": run.epochs}
        about = {"run": self.seeds.run(trial.number, replicate), "folder": str(self.place(trial.number, replicate))}
        return {"name": self.name, "attempt": run.attempt, "hub": hub} | keys | seen | about

    def trial(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def place(self, number: int, replicate: int) -> Path:
        """The folder of a run: its trial's, where it is the only one."""
        seed = self.seeds.seed(replicate)
        return self.trial(number) if seed is None else self.trial(number) / f"seed-{seed}"

    def started(self, trial: Trial, label: str) -> None:
        """A trial of several runs has a record of its own, above theirs."""
        spool = Spool(self.trial(trial.number))
        if self.seeds.count == 1 or spool.state() == State.RUNNING:
            return
        tags = self._tags(trial) | {"sweep.replicates": self.seeds.count}
        Spool(self.trial(trial.number), spool.attempts() + 1).start(
            title(trial.number, label), tags, self.key, self.key_of(trial.number)
        )

    def reused(self, trial: Trial, replicate: int, label: str, found: Found) -> None:
        """A run in whose place another one counts: what that one was, and came to, with its id as the tag `reused`."""
        place, there = self.place(trial.number, replicate), found.record
        spool = Spool(place, Spool(place).attempts() + 1)
        tags = self._tags(trial)
        kept = ("dir", "settings", "machine", "mlflow.source.git.commit")
        tags |= {name: there.data.tags[name] for name in kept if name in there.data.tags}
        key = self.key_of(trial.number, replicate)
        spool.start(title(trial.number, label), tags | {"reused": there.info.run_id}, self._above(trial), key)
        spool.log_datasets([data_of(one) for one in there.inputs.dataset_inputs])
        spool.log_params(there.data.params | trial.params)
        for epoch, value in found.curve:
            last = epoch == found.curve[-1][0]
            spool.log_metrics(dict(found.metrics) if last else {found.objective: value}, epoch)
        spool.finish(State.DONE)

    def ended(self, trial: Trial) -> None:
        """The end of such a record: the means of what its runs reported last, as far as this sees their folders."""
        if self.seeds.count == 1:
            return
        spool = Spool(self.trial(trial.number), Spool(self.trial(trial.number)).attempts())
        runs = [Spool(self.place(trial.number, replicate)) for replicate, run in trial.runs.items() if run.values]
        reported = [metrics for metrics in (run.last_metrics() for run in runs) if metrics]
        shared = [key for key in (reported[0] if reported else {}) if all(key in metrics for metrics in reported)]
        if shared:
            spool.log_metrics({key: fmean(one[key] for one in reported) for key in shared}, len(reported))
        if params := next(filter(None, (run.params() for run in runs)), None):
            spool.log_params({key: value for key, value in params.items() if key != self.seeds.key})
        if trial.error:
            spool.set_tags({"error": trial.error[-4000:]})
        spool.finish(trial.state)

    def failure(self, trial: Trial, label: str) -> None:
        """Of a trial that could not record its own end, or not even its beginning."""
        spool = Spool(self.trial(trial.number))
        if spool.state() == State.FAILED:
            return
        spool = Spool(self.trial(trial.number), max(spool.attempts(), 1))
        if spool.key is None:
            spool.start(title(trial.number, label), self._tags(trial), self.key, self.key_of(trial.number))
        spool.set_tags({"error": trial.error[-4000:]})
        spool.finish(State.FAILED)

    def _tags(self, trial: Trial) -> dict[str, Any]:
        return {"sweep.name": self.name, "sweep.trial": trial.number, "sweep.params": json.dumps(trial.params)}

    def _above(self, trial: Trial) -> str:
        """The key of the record that those of a trial's runs lie below."""
        return self.key if self.seeds.count == 1 else self.key_of(trial.number)

    def key_of(self, number: int, replicate: int | None = None) -> str:
        """Of a trial's MLflow run, or of one of several below it."""
        seed = None if replicate is None else self.seeds.seed(replicate)
        return f"{self.key}-{number:04d}" + ("" if seed is None else f"-{seed}")
