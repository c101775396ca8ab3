"""The loop of a sweep: it starts what is due, hears what happens, and has it written down. No barrier, no batch."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ghm.failure import Failed
from ghm.nodes import Sight
from ghm.secrets import hidden
from sweeps import policy
from sweeps.budget import Budget, Meter
from sweeps.draw import Search
from sweeps.goal import Goal, Values
from sweeps.hub import Report
from sweeps.lease import Lease
from sweeps.ledger import Ledger, Trial
from sweeps.policy import End, Rules
from sweeps.record import Record
from sweeps.slots import Slots, Task
from sweeps.space import label
from sweeps.states import Answer, State
from sweeps.view import View

# Makes a trial's config of its number, what was drawn, its label, and what it has to know of its sweep.
Compose = Callable[[int, dict[str, Any], str, dict[str, Any]], dict[str, Any]]


class SweepFailed(Failed):
    """More trials failed than `max_failure_rate` allows."""


@dataclass
class Controller:
    """Runs `task` on composed configs until every trial of the sweep has ended, or it is drained."""

    goal: Goal
    lease: Lease
    ledger: Ledger
    search: Search
    slots: Slots
    task: Task
    compose: Compose
    record: Record
    view: View
    rules: Rules
    sight: Sight
    meter: Meter
    draining: bool = False
    _said: bool = False  # that it drains
    _exhausted: bool = False  # no point is left to draw
    _next: tuple[Trial, dict[str, Any]] | None = None  # composed while others run
    _told: dict[int, Answer] = field(default_factory=dict)  # the last answer to each trial that runs
    _metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)  # that each reported last
    _waits: dict[int, float] = field(default_factory=dict)  # until when a lost trial is not tried again

    def run(self) -> None:
        """SweepFailed as soon as too many tasks raised. What has not ended waits in the ledger."""
        self.view.show(self.ledger)
        while True:
            while not self.draining and self.slots.free() and self._prepare() and self.meter.allows():
                self._start()
            if not self.slots.busy and self._over():
                return
            self._say_draining()
            self._prepare()
            self.lease.check()
            for event in self.slots.events(seconds=0.5):
                if isinstance(event, Report):
                    self._answer(event)
                else:
                    self._end(*event)

    def _over(self) -> bool:
        """Whether nothing is left to start, now that nothing runs."""
        return self.draining or not self.ledger.count(State.QUEUED) or not self.meter.allows()

    @property
    def complete(self) -> bool:
        """Whether every trial that there is to be has ended."""
        whole = self._exhausted or len(self.ledger.trials) >= self.rules.n_trials
        return whole and not self.ledger.count(State.QUEUED, State.RUNNING)

    def drain(self) -> None:
        """Start nothing more, and stop each trial at the end of its epoch. Nothing else, as signal handlers call it."""
        self.draining = True

    def _say_draining(self) -> None:
        if self.draining and not self._said:
            self._said = True
            self.view.note(f"ending: {len(self.slots.busy)} trials end with the epoch they are in; again stops at once")

    def _prepare(self) -> bool:
        """Have the next trial drawn and composed; whether there is one."""
        if self._next is not None or self.draining:
            return self._next is not None
        trial = policy.due(self.ledger.trials, self._waits, time.monotonic())
        if trial is None:
            if self._exhausted or len(self.ledger.trials) >= self.rules.n_trials:
                return False
            drawn = self.search.draw(self.ledger, self.rules.n_trials)
            if drawn is None:
                self._exhausted = True
                return False
            trial = self.ledger.queue(drawn)
        try:
            self.ledger.complete(trial.number, self.search.space)
            context = self.record.context(trial, self.slots.hub_name, self.sight)
            self._next = trial, self.compose(trial.number, trial.params, label(trial.params), context)
        except Exception:
            self.view.started(trial.number, str(trial.params))
            self._end(trial.number, End(error=traceback.format_exc()))
            return self._prepare()
        return True

    def _start(self) -> None:
        assert self._next is not None
        (trial, config), self._next = self._next, None
        self.ledger.start(trial.number)
        self.meter.started(trial.number)
        self.view.started(trial.number, label(trial.params), trial.attempt)
        self.slots.start(trial.number, trial.attempt, self.task, config)

    def _answer(self, report: Report) -> None:
        trial = self.ledger.trials[report.trial]
        if trial.state != State.RUNNING or trial.attempt != report.attempt:
            return
        self.ledger.report(report.trial, report.epoch, report.value)
        self._metrics[report.trial] = report.metrics
        self.meter.reported(report.trial)
        if self.meter.budget != Budget():
            self.ledger.keep_used(self.meter.used)
        self.view.reported(report.trial, report.epoch, report.epochs, report.value)
        prunes = not 0 < report.epochs <= report.epoch and self.ledger.prunes(report.trial)
        ending = self.draining or not self.meter.allows(report.trial)
        told = policy.answer(trial, report.epoch, report.epochs, prunes, ending)
        if told == Answer.GO_ON and report.epoch != report.epochs:
            self.meter.goes_on(report.trial)
        self._told[report.trial] = told
        self.slots.answer(report, told)

    def _end(self, number: int, end: End) -> None:
        trial = self.ledger.trials[number]
        if trial.state == State.RUNNING:  # and not one that could not even be composed
            self.meter.ended(number)
            self.ledger.keep_used(self.meter.used)
        end = self._checked(number, end)
        change = policy.after(trial, end, self._told.pop(number, Answer.GO_ON), self.rules)
        if change.state == State.QUEUED:
            self._waits[number] = time.monotonic() + change.wait
            self.ledger.requeue(number, change.attempt)
            self.view.queued(number, change)
            return
        self.ledger.end(
            number, change.state, change.values, hidden(change.error), change.spent, self._violations(number)
        )
        if change.state == State.FAILED:
            self.record.failure(trial, label(trial.params))
        self.view.ended(self.ledger, trial)
        if change.state == State.FAILED and not self.draining:
            self._give_up_if_needed()

    def _checked(self, number: int, end: End) -> End:
        """How an attempt ended, as an error where what it returned, or reported, is not what the sweep is after."""
        goal, known = self.goal, self._metrics.get(number, {})
        if end.values is None:
            return end
        if len(end.values) != len(goal.objectives):
            counts = f"{len(end.values)} values, and not {len(goal.objectives)}"
            return End(error=f"it returned {counts}: one for each of objective={','.join(goal.objectives)}")
        for name in (*goal.at_most, *goal.at_least):
            if name not in known:
                return End(error=f"it reported no {name}, on which hydra.sweeper.at_most or at_least sets a bound")
        return end

    def _violations(self, number: int) -> Values:
        """Of the bounds, by what the trial reported last; none where it did not come so far."""
        try:
            return self.goal.violations(self._metrics.pop(number, {}))
        except KeyError:
            return ()

    def _give_up_if_needed(self) -> None:
        """SweepFailed where more tasks raised than `max_failure_rate` allows."""
        if failed := policy.failures(self.ledger.trials, self.rules):
            last = failed[-1]
            raise SweepFailed(
                f"{len(failed)} of {self.rules.n_trials} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.rules.max_failure_rate}; the last was "
                f"trial {last.number}, {label(last.params)}: {last.reason}"
            )
