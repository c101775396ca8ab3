"""The loop of a sweep: it starts what is due, hears what happens, and has it written down. No barrier, no batch."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ghm.failure import Failed
from ghm.secrets import hidden
from sweeps import policy
from sweeps.budget import Budget, Meter
from sweeps.draw import Search
from sweeps.goal import Goal, Values
from sweeps.hub import Report
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.policy import End, Rules
from sweeps.record import Record
from sweeps.replicates import Replicates, dropped
from sweeps.reuse import Reuse
from sweeps.slots import Slots
from sweeps.space import label
from sweeps.states import Answer, State
from sweeps.trials import Trial
from sweeps.view import View

# Makes a run's config of its trial's number, what was drawn, its label, and what it has to know of its sweep.
Compose = Callable[[int, dict[str, Any], str, dict[str, Any]], dict[str, Any]]
ASK = 5.0  # seconds between two looks at a run that is waited for


class SweepFailed(Failed):
    """More trials failed than `max_failure_rate` allows."""


@dataclass
class Controller:
    """Runs composed configs in slots until every trial of the sweep has ended, or it is drained."""

    goal: Goal
    lease: Lease
    ledger: Ledger
    search: Search
    slots: Slots
    compose: Compose
    record: Record
    view: View
    rules: Rules
    meter: Meter
    reuse: Reuse
    replicates: Replicates = field(default_factory=Replicates)
    draining: bool = False
    _said: bool = False  # that it drains
    _exhausted: bool = False  # no point is left to draw
    _used: bool = False  # more of the budget than the ledger says
    _next: tuple[Trial, int, dict[str, Any]] | None = None  # a trial and its replicate, composed while others run
    # By the number of a run, which is its trial's where that has no other:
    _told: dict[int, Answer] = field(default_factory=dict)  # the last answer to each that runs
    _metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)  # that each reported last
    _waits: dict[int, float] = field(default_factory=dict)  # until when one that was lost is not tried again

    def run(self) -> None:
        """SweepFailed as soon as too many tasks raised. What has not ended waits in the ledger."""
        self.view.show(self.ledger)
        self._settle()  # what a controller that was killed left half done
        while True:
            while not self.draining and self.slots.free() and self._prepare() and self.meter.allows():
                self._start()
            self._keep_used()  # when the free slot has its next trial
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

    def _keep_used(self) -> None:
        """Have the ledger know what a run that ended has used."""
        if self._used:
            self.ledger.keep_used(self.meter.used)
            self._used = False

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
        """Have the next run drawn and composed; whether there is one. What others ran is not run again."""
        if self._next is not None and self._next[0].over:  # out of the race since
            self._next = None
        while self._next is None and not self.draining and (due := self._due()) is not None:
            trial, replicate = due
            run = False  # nor where it could not even be composed
            with self._blamed(trial, replicate):
                self.ledger.complete(trial.number, self.search.space)
                run = not self._taken_over(trial, replicate)
            if run:
                hub, sight = self.slots.open()
                with self._blamed(trial, replicate):
                    context = self.record.context(trial, replicate, hub, sight)
                    context["seed"] = self.replicates.seed(replicate)
                    config = self.compose(trial.number, trial.params, self._label(trial, replicate), context)
                    self._next = trial, replicate, config
        return self._next is not None

    @contextmanager
    def _blamed(self, trial: Trial, replicate: int) -> Iterator[None]:
        """What is raised is this run's end."""
        try:
            yield
        except Exception:
            number = self.replicates.run(trial.number, replicate)
            self.view.started(number, label(trial.params))
            self._end(number, End(error=traceback.format_exc()))

    def _label(self, trial: Trial, replicate: int) -> str:
        seed = self.replicates.seed(replicate)
        return label(trial.params) + ("" if seed is None else f" {self.replicates.key}={seed}")

    def _taken_over(self, trial: Trial, replicate: int) -> bool:
        """Whether another run is the same and done, whose values then count here too, or runs and is waited for."""
        number, own = self.replicates.run(trial.number, replicate), self.record.key_of(trial.number, replicate)
        found = self.reuse.find(trial.params, self.replicates.seed(replicate), own)
        if found is None:
            return False
        if not found.values:
            if number not in self._waits:
                self.view.note(f"{self.replicates.named(number)} waits for the same training, {found}")
            self._waits[number] = time.monotonic() + ASK
            return True
        self.record.started(trial, label(trial.params))
        self.record.reused(trial, replicate, self._label(trial, replicate), found)
        self.ledger.start(trial.number, replicate)
        self.ledger.reuse(trial.number, replicate)
        for epoch, value in found.curve:
            self.ledger.report(trial.number, epoch, value, replicate)
        self._metrics[number] = found.metrics
        self.view.note(f"{self.replicates.named(number)} is known from {found}")
        self._done(number, found.values)
        return True

    def _due(self) -> tuple[Trial, int] | None:
        """The run to start next. Of a finite space each point is run once before any is run again."""
        wide = self.replicates.count > 1 and self.search.points(self.rules.n_trials) is not None
        known = self._queued(wide, ahead=False)
        if known is not None and not (wide and known[1]):
            return known
        if not self._exhausted and len(self.ledger.trials) < self.rules.n_trials:
            drawn = self.search.draw(self.ledger, self.rules.n_trials)
            if drawn is not None:
                return self.ledger.queue(drawn), 0
            self._exhausted = True
        if known is None and self.slots.free():
            return self._queued(wide, ahead=True)
        return known

    def _queued(self, wide: bool, ahead: bool) -> tuple[Trial, int] | None:
        return policy.due(self.ledger.trials, self._waits, time.monotonic(), self.replicates, wide, ahead)

    def _start(self) -> None:
        assert self._next is not None
        (trial, replicate, config), self._next = self._next, None
        number, attempt = self.replicates.run(trial.number, replicate), trial.run(replicate).attempt
        self.record.started(trial, label(trial.params))
        self.ledger.start(trial.number, replicate)
        self.meter.started(number)
        self.view.started(number, label(trial.params), attempt)
        self.slots.start(number, attempt, config)

    def _answer(self, report: Report) -> None:
        number, replicate = self.replicates.of(report.trial)
        trial, run = self.ledger.trials[number], self.ledger.trials[number].run(replicate)
        if not run.running or run.attempt != report.attempt:
            return
        if trial.over:
            self.slots.answer(report, Answer.PRUNE)
            return
        self.ledger.report(number, report.epoch, report.value, replicate)
        self._metrics[report.trial] = report.metrics
        self.meter.reported(report.trial)
        if self.meter.budget != Budget():
            self.ledger.keep_used(self.meter.used)
        self.view.reported(report.trial, report.epoch, report.epochs, report.value)
        prunes = not replicate and not 0 < report.epochs <= report.epoch and self.ledger.prunes(number)
        ending = self.draining or not self.meter.allows(report.trial)
        told = policy.answer(run, report.epoch, report.epochs, prunes, ending)
        if told == Answer.GO_ON and report.epoch != report.epochs:
            self.meter.goes_on(report.trial)
        self._told[report.trial] = told
        self.slots.answer(report, told)

    def _end(self, number: int, end: End) -> None:
        """A run ended: what becomes of it, of its trial, and of the race."""
        of_trial, replicate = self.replicates.of(number)
        trial = self.ledger.trials[of_trial]
        run = trial.run(replicate)
        if run.running:  # and not one that could not even be composed
            self.meter.ended(number)
            self._used = True
        if trial.over:  # dropped or failed meanwhile
            run.running = False
            self._told.pop(number, None)
            self._metrics.pop(number, None)
            self.view.gone(number)
            return
        change = policy.after(run, self._checked(number, end), self._told.pop(number, Answer.GO_ON), self.rules)
        if change.state == State.QUEUED:
            self._waits[number] = time.monotonic() + change.wait
            self.ledger.requeue(of_trial, replicate, change.attempt)
            self.view.queued(number, change)
            return
        self.view.gone(number)
        if change.state == State.DONE:
            self._done(number, change.values)
            return
        error = change.error
        if change.state == State.PRUNED:
            error = self._why_pruned(trial)
        self._close(trial, change.state, change.values, error, change.spent, self._violations(number))

    def _why_pruned(self, trial: Trial) -> str:
        last = max(trial.epochs)
        why = f"{type(self.search.pruner).__name__}: {trial.epochs[last]:.4g} after epoch {last}"
        best = self.ledger.best
        if best is None or last not in best.epochs:
            return why
        return f"{why}, where the best, trial {best.number}, had {best.epochs[last]:.4g}"

    def _done(self, number: int, values: Values) -> None:
        """A run came to these values: so did its trial, if it is the only one."""
        of_trial, replicate = self.replicates.of(number)
        violations = self._violations(number)
        if self.replicates.count == 1:
            self._close(self.ledger.trials[of_trial], State.DONE, values, violations=violations)
            return
        self.ledger.keep(of_trial, replicate, values, violations)
        self.view.kept(self.ledger, number, values)
        self._settle()

    def _close(
        self,
        trial: Trial,
        state: State,
        values: Values,
        error: str = "",
        spent: bool = False,
        violations: Values = (),
    ) -> None:
        """A trial has ended."""
        self.ledger.end(trial.number, state, values, hidden(error), spent, violations)
        if state == State.FAILED:
            self.record.failure(trial, label(trial.params))
        self.record.ended(trial)
        self.view.ended(self.ledger, trial)
        if state == State.FAILED and not self.draining:
            self._give_up_if_needed()

    def _together(self, trial: Trial) -> Values:
        return self.replicates.value([run.values for run in trial.ended], self.goal.directions)

    def _settle(self) -> None:
        """End the trials that are out of the race, and those of which all runs have ended."""
        self._race()
        for trial in self.ledger.trials:
            if not trial.over and len(trial.ended) == self.replicates.count:
                broken = tuple(fmean(parts) for parts in zip(*(run.violations for run in trial.ended), strict=True))
                self._close(trial, State.DONE, self._together(trial), violations=broken)

    def _race(self) -> None:
        """Drop the trials that are clearly worse than another, seed by seed. Of several objectives none is."""
        if self.goal.several or not self.replicates.race:
            return
        lost = (State.PRUNED, State.FAILED)
        still = [trial for trial in self.ledger.trials if trial.state not in lost and trial.ended]
        values = {trial.number: [-self.goal.rank(run.values)[0] for run in trial.ended] for trial in still}
        running = [trial.number for trial in still if not trial.over and len(trial.ended) < self.replicates.count]
        for drop in dropped(values, running, self.replicates.race):
            trial = self.ledger.trials[drop.trial]
            self._close(trial, State.PRUNED, self._together(trial), str(drop))

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
            self._keep_used()
            last = failed[-1]
            raise SweepFailed(
                f"{len(failed)} of {self.rules.n_trials} trials failed, more than "
                f"hydra.sweeper.max_failure_rate={self.rules.max_failure_rate}; the last was "
                f"trial {last.number}, {label(last.params)}: {last.reason}"
            )
