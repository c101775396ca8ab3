"""The loop of a sweep: ask Optuna, run on a free slot, tell Optuna. No barrier, no batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optuna.study import Study
from optuna.trial import Trial, TrialState

from sweeps.pool import Outcome, Pool, Task
from sweeps.space import Params, Space
from sweeps.study import ENDED, count
from sweeps.view import View


class SweepFailed(RuntimeError):
    """More trials failed than `max_failure_rate` allows."""


@dataclass
class Controller:
    """Runs `task` on composed configs until the study holds `n_trials` ended trials.

    `compose(number, params, label)` turns a trial into the plain config that `task` gets.
    """

    study: Study
    space: Space
    pool: Pool
    task: Task
    compose: Callable[[int, Params, str], dict[str, Any]]
    view: View
    n_trials: int
    max_failure_rate: float
    trials: dict[int, Trial] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def run(self) -> None:
        """KeyboardInterrupt passes through; the study can be continued afterwards."""
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
        trial = self.study.ask()
        self.trials[trial.number] = trial
        params = self.space.suggest(trial)
        label = self.space.label(params)
        self.view.started(trial.number, label)
        self.pool.submit(trial.number, self.task, self.compose(trial.number, params, label))

    def _hear(self) -> None:
        """Pass the epochs that trials reported on to Optuna, and stop what it would prune."""
        for number, epoch, epochs, value in self.pool.reports():
            self.view.reported(number, epoch, epochs, value)
            trial = self.trials.get(number)
            if trial is None:
                continue
            trial.report(value, epoch)
            if epoch < epochs and number not in self.stopped and trial.should_prune():
                self.stopped.add(number)
                self.pool.stop(number)

    def _end(self, number: int, outcome: Outcome) -> None:
        trial = self.trials.pop(number)
        label = self.space.label(trial.params)
        if outcome.error is not None:
            trial.set_user_attr("error", outcome.error[-4000:])
            self.study.tell(trial, state=TrialState.FAIL)
            self.view.ended(number, "failed", None, outcome.error.strip().splitlines()[-1])
            self._give_up_if_needed(outcome.error)
        elif number in self.stopped:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.view.ended(number, "pruned", outcome.value)
        else:
            self.study.tell(trial, outcome.value)
            self._recount_best()
            self.view.ended(number, "done", outcome.value, label)

    def _give_up_if_needed(self, error: str) -> None:
        failed = count(self.study, TrialState.FAIL)
        if failed / self.n_trials > self.max_failure_rate:
            raise SweepFailed(
                f"{failed} of {self.n_trials} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; the last one:\n{error}"
            )

    def _recount(self) -> None:
        for state, name in ((TrialState.COMPLETE, "done"), (TrialState.PRUNED, "pruned"), (TrialState.FAIL, "failed")):
            setattr(self.view, name, count(self.study, state))
        self._recount_best()

    def _recount_best(self) -> None:
        if count(self.study, TrialState.COMPLETE):
            best = self.study.best_trial
            self.view.best = (self.study.best_value, f"trial {best.number}, {self.space.label(best.params)}")
