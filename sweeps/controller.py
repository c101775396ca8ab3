"""The loop of a sweep: ask Optuna, run on a free slot, tell Optuna. No barrier, no batch."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState

from ghm.failure import Failed
from ghm.secrets import hidden
from ghm.tracking import Spool
from sweeps.pool import Outcome, Pool, Task
from sweeps.space import Params, Space
from sweeps.states import State
from sweeps.study import ENDED, count
from sweeps.view import View


class SweepFailed(Failed):
    """More trials failed than `max_failure_rate` allows."""


@dataclass(frozen=True)
class Search:
    """How trials are chosen: from which space, by which sampler, and which are stopped early.

    `make_sampler(begun)` makes the sampler of the next trial, `begun` trials having been begun.
    """

    space: Space
    make_sampler: Callable[[int], BaseSampler]
    pruner: BasePruner


@dataclass(frozen=True)
class Record:
    """The sweep's place in MLflow: the key of its run, below which its trials record themselves."""

    name: str
    key: str
    folder: Path  # holds one folder a trial

    def context(self, number: int, hub: str) -> dict[str, Any]:
        """What a trial has to know to record itself and to report."""
        return {"name": self.name, "record": self.trial_key(number), "parent": self.key, "hub": hub}

    def trial_key(self, number: int) -> str:
        return f"{self.key}-{number:04d}"

    def trial(self, number: int) -> Path:
        return self.folder / f"{number:04d}"

    def failure(self, number: int, params: Params, label: str, error: str) -> None:
        """Of a trial that could not record its own end, or not even its beginning."""
        spool = Spool(self.trial(number))
        if spool.state() == State.FAILED:
            return
        spool = Spool(self.trial(number), max(spool.attempts(), 1))
        tags = {"sweep.name": self.name, "sweep.trial": number, "sweep.params": json.dumps(params)}
        if spool.key is None:
            spool.start(f"{number:03d} {label}", tags, parent=self.key, key=self.trial_key(number))
        spool.set_tags({"error": error[-4000:]})
        spool.finish(State.FAILED)


@dataclass
class Controller:
    """Runs `task` on composed configs until the study holds `n_trials` ended trials.

    `compose(number, params, label, context)` turns a trial into the plain config that `task` gets.
    """

    study: Study
    search: Search
    pool: Pool
    task: Task
    compose: Callable[[int, Params, str, dict[str, Any]], dict[str, Any]]
    record: Record
    view: View
    n_trials: int
    max_failure_rate: float
    trials: dict[int, Trial] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def run(self) -> None:
        """KeyboardInterrupt passes through; the study can be continued afterwards."""
        self.study.pruner = self.search.pruner
        self._recount()
        while True:
            while self.pool.free and self._ended() + len(self.trials) < self.n_trials:
                self._start()
            if not self.trials:
                return
            outcomes = self.pool.ended(seconds=0.5)
            self._hear()
            for number, outcome in outcomes:
                self._end(number, outcome)

    def _ended(self) -> int:
        return count(self.study, *ENDED)

    def _start(self) -> None:
        # A fresh sampler for each trial, seeded by how many were begun: a sweep that was killed and
        # continued draws what it would have drawn, and nothing twice.
        begun = len(self.study.get_trials(deepcopy=False)) - count(self.study, TrialState.WAITING)
        self.study.sampler = self.search.make_sampler(begun)
        trial = self.study.ask()
        self.trials[trial.number] = trial
        params = self.search.space.suggest(trial)
        label = self.search.space.label(params)
        self.view.started(trial.number, label)
        context = self.record.context(trial.number, self.pool.hub_name)
        self.pool.submit(trial.number, self.task, self.compose(trial.number, params, label, context))

    def _hear(self) -> None:
        """Pass the epochs that trials reported on to Optuna, and stop what it would prune."""
        for number, epoch, epochs, value in self.pool.reports():
            self.view.reported(number, epoch, epochs, value)
            trial = self.trials.get(number)
            if trial is None:
                continue
            if epoch in self.study._storage.get_trial(trial._trial_id).intermediate_values:
                continue  # said again by a trial that goes on
            trial.report(value, epoch)
            if epoch < epochs and number not in self.stopped and trial.should_prune():
                self.stopped.add(number)
                self.pool.stop(number)

    def _end(self, number: int, outcome: Outcome) -> None:
        trial = self.trials.pop(number)
        label = self.search.space.label(trial.params)
        if outcome.error is not None:
            trial.set_user_attr("error", hidden(outcome.error)[-4000:])
            self.study.tell(trial, state=TrialState.FAIL)
            reason = outcome.error.strip().splitlines()[-1]
            self.view.ended(number, State.FAILED, None, reason)
            self.record.failure(number, trial.params, label, outcome.error)
            self._give_up_if_needed(f"trial {number}, {label}: {reason}")
        elif number in self.stopped:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.view.ended(number, State.PRUNED, outcome.value)
        else:
            self.study.tell(trial, outcome.value)
            self._recount_best()
            self.view.ended(number, State.DONE, outcome.value)

    def _give_up_if_needed(self, last: str) -> None:
        failed = count(self.study, TrialState.FAIL)
        if failed / self.n_trials > self.max_failure_rate:
            raise SweepFailed(
                f"{failed} of {self.n_trials} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; the last was {last}"
            )

    def _recount(self) -> None:
        for state, name in ((TrialState.COMPLETE, "done"), (TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
            setattr(self.view, name, count(self.study, state))
        self._recount_best()

    def _recount_best(self) -> None:
        if count(self.study, TrialState.COMPLETE):
            best = self.study.best_trial
            self.view.best = (self.study.best_value, f"trial {best.number}, {self.search.space.label(best.params)}")
