"""The truth about a sweep that runs: each of its trials, and what became of it. This file alone writes it.

It is kept in Optuna's storage, as `sweeps.trials` says. A copy in memory is what samplers and pruners look at: nothing
that they do takes the time of a database.
"""

import logging
import uuid
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import OperationalError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from sweeps.budget import Used
from sweeps.goal import Goal, Values
from sweeps.space import Space
from sweeps.states import State
from sweeps.trials import ATTEMPT, BOUNDS, ERROR, RUNS, SPENT, STATES, Trial, identity, trial_of

USED = "used"  # of the study: what it has used of its budget
PATIENCE = 300  # seconds for which a locked database, or a full disk under it, is tried again

log = logging.getLogger(__name__)


class Ledger:
    """The trials of a study, for the controller that holds its lease.

    What was running when it is opened is queued again, under its number and with its attempt: whoever ran it is gone.

    `draw` gives a point drawn anew, as a trial of `memory`, or None: with it the history is drawn again, trial by
    trial, so that a sampler with a state of its own is where it was; where something else is drawn, what the storage
    holds counts. Nothing that CMA-ES keeps of itself is read from the storage: Optuna would unpickle it.
    """

    def __init__(
        self,
        study: Study,
        pruner: BasePruner | None = None,
        draw: Callable[["Ledger"], int | None] | None = None,
    ) -> None:
        self._durable = study
        self.memory = optuna.create_study(study_name=study.study_name, directions=study.directions, pruner=pruner)
        ways = tuple(direction.name.lower() for direction in study.directions)
        self._goal = Goal(tuple(map(str, range(len(ways)))), ways)
        self._ids: list[int] = []  # of each trial, in the storage
        self._copies: list[int] = []  # and in memory, which also holds points drawn and not taken
        self._attributes: list[set[str]] = []  # system attributes of each that are in the storage
        self.trials: list[Trial] = []
        for frozen in study.get_trials(deepcopy=False):
            self._add(frozen, self._again(_in_memory(copy(frozen)), None if draw is None else draw(self)))
        for trial in self.trials:
            if trial.state == State.RUNNING:
                self.requeue(trial.number)

    def _again(self, frozen: FrozenTrial, drawn: int | None) -> int:
        """A trial of the storage, in memory: that which was drawn, if it is the same point."""
        storage = self.memory._storage
        if drawn is None:
            return storage.create_new_trial(self.memory._study_id, frozen)
        if identity(storage.get_trial(drawn).params) != identity(frozen.params):
            storage.set_trial_state_values(drawn, TrialState.FAIL)  # samplers pass it over
            return storage.create_new_trial(self.memory._study_id, frozen)
        for key, value in frozen.system_attrs.items():
            storage.set_trial_system_attr(drawn, key, value)
        for epoch, value in frozen.intermediate_values.items():
            storage.set_trial_intermediate_value(drawn, epoch, value)
        storage.set_trial_state_values(drawn, frozen.state, frozen.values)
        return drawn

    @property
    def key(self) -> str:
        """Of the sweep's MLflow run: the study's own, so that no other sweep of this name touches it."""
        if "record" not in self._durable.user_attrs:
            self._durable.set_user_attr("record", uuid.uuid4().hex)
        key: str = self._durable.user_attrs["record"]
        return key

    def point_to(self, link: str, note: str) -> None:
        """For who looks at the study in Optuna's dashboard: a link to the sweep's place in MLflow, and a note with it.

        The note, in Markdown, is written once; what somebody made of it there is kept, with the link that now holds.
        """
        before = self._durable.user_attrs.get("mlflow")
        if before != link:
            from optuna_dashboard import get_note, save_note  # a second, which only sweeps with a server take

            self._durable.set_user_attr("mlflow", link)
            there = get_note(self._durable)
            save_note(self._durable, there.replace(before, link) if before and there else note)

    @property
    def epochs(self) -> int:
        """Trained by all runs."""
        return sum(run.epochs for trial in self.trials for run in trial.runs.values() if not run.reused)

    @property
    def used(self) -> Used:
        """What earlier commands used of the sweep's budget."""
        return Used(**self._durable.user_attrs.get(USED, {}))

    def keep_used(self, used: Used) -> None:
        study = self._durable
        _patiently(lambda: study._storage.set_study_user_attr(study._study_id, USED, asdict(used)))

    @property
    def front(self) -> list[Trial]:
        """The trials that no other beats, best in the first objective first: of one objective, the best."""
        done = {trial.number: trial.values for trial in self.trials if trial.state == State.DONE and trial.allowed}
        return [self.trials[number] for number in self._goal.front(done)]

    @property
    def best(self) -> Trial | None:
        """In the first objective, of the trials that keep all bounds."""
        return next(iter(self.front), None)

    def count(self, *states: State) -> int:
        return sum(trial.state in states for trial in self.trials)

    def queue(self, drawn: int) -> Trial:
        """Add the point that was drawn as a trial of `memory`, by its id: whole, in one transaction."""
        point = self.memory._storage.get_trial(drawn)
        new = create_trial(
            state=TrialState.WAITING,
            params=point.params,
            distributions=point.distributions,
            user_attrs={ATTEMPT: 1},
            system_attrs=_plain(point.system_attrs),
        )

        study, tried = self._durable, False

        def write() -> None:
            nonlocal tried
            # A lost answer may have been to a commit that counts.
            if not tried or len(study.get_trials(deepcopy=False)) == len(self.trials):
                tried = True
                new._trial_id = study._storage.create_new_trial(study._study_id, new)
            else:
                new._trial_id = study.get_trials(deepcopy=False)[-1]._trial_id

        _patiently(write)
        new.number = len(self.trials)
        self._add(new, drawn)
        return self.trials[-1]

    def complete(self, number: int, space: Space) -> None:
        """Draw what a queued trial leaves open, as one that was queued by hand does."""
        drawn = optuna.trial.Trial(self.memory, self._copies[number])
        known = set(self.memory._storage.get_trial(self._copies[number]).params)
        params = space.suggest(drawn)
        distributions = self.memory._storage.get_trial(drawn._trial_id).distributions
        for key in set(params) - known:
            value = distributions[key].to_internal_repr(params[key])
            self._store("set_trial_param", number, key, value, distributions[key])
        self.trials[number].params = params

    def start(self, number: int, replicate: int = 0) -> None:
        trial = self.trials[number]
        if trial.state != State.RUNNING:
            self._store("set_trial_state_values", number, TrialState.RUNNING)
        trial.state, trial.run(replicate).running = State.RUNNING, True

    def reuse(self, number: int, replicate: int) -> None:
        """What is reported of this run from here on was trained by another."""
        self.trials[number].run(replicate).reused = True
        self._keep_runs(number)

    def report(self, number: int, epoch: int, value: float, replicate: int = 0) -> None:
        """What an epoch of a run came to; said again it changes nothing. Pruners see the first run's."""
        trial, run = self.trials[number], self.trials[number].run(replicate)
        if replicate and epoch > run.epochs:
            run.epochs = epoch
            self._keep_runs(number)
        if not replicate and epoch not in trial.epochs:
            self._write("set_trial_intermediate_value", number, epoch, value)
            trial.epochs[epoch] = value
            run.epochs = len(trial.epochs)

    def keep(self, number: int, replicate: int, values: Values, violations: Values) -> None:
        """A run has ended; its trial has not, for all that this says."""
        run = self.trials[number].run(replicate)
        run.values, run.violations, run.running = values, violations, False
        self._keep_runs(number)
        self._rest(number)

    def prunes(self, number: int) -> bool:
        """The pruner's verdict on a trial's last epoch."""
        trial = self.memory._storage.get_trial(self._copies[number])
        verdict: bool = self.memory.pruner.prune(self.memory, trial)
        self._keep_attributes(number)
        return verdict

    def end(
        self,
        number: int,
        state: State,
        values: Values = (),
        error: str = "",
        spent: bool = False,
        violations: Values = (),
    ) -> None:
        """A trial has ended. FAILED with what it ended of; PRUNED, maybe, with why."""
        if violations:
            self._write("set_trial_system_attr", number, BOUNDS, violations)
        for key, said in ((ERROR, error[-4000:]), (SPENT, spent)):
            if said:
                self._write("set_trial_user_attr", number, key, said)
        self._write("set_trial_state_values", number, STATES[state], values or None)
        trial = self.trials[number]
        trial.state, trial.values, trial.violations = state, values, violations
        trial.error, trial.spent = error, spent

    def requeue(self, number: int, replicate: int | None = None, attempt: int | None = None) -> None:
        """A run, or all of a trial, is to go on later from its last checkpoint, as the same attempt or another."""
        trial = self.trials[number]
        if replicate is not None and attempt is not None and attempt != trial.run(replicate).attempt:
            trial.run(replicate).attempt = attempt
            if replicate:
                self._keep_runs(number)
            else:
                self._write("set_trial_user_attr", number, ATTEMPT, attempt)
        for one, run in trial.runs.items():
            run.running = run.running and replicate not in (None, one)
        self._rest(number)

    def _rest(self, number: int) -> None:
        """A trial of which nothing runs waits for what is still to run."""
        trial = self.trials[number]
        if not any(run.running for run in trial.runs.values()):
            self._store("set_trial_state_values", number, TrialState.WAITING)
            trial.state = State.QUEUED

    def _keep_runs(self, number: int) -> None:
        """All of its runs that Optuna has no field for."""
        runs = {}
        for replicate, run in self.trials[number].runs.items():
            runs[str(replicate)] = {"attempt": run.attempt, "epochs": run.epochs, "reused": run.reused} | {
                name: list(kept) for name, kept in (("values", run.values), ("violations", run.violations)) if kept
            }
        self._write("set_trial_user_attr", number, RUNS, runs)

    def results(self) -> dict[str, Any]:
        """What Hydra's Optuna sweeper writes to `optimization_results.yaml`."""
        if len(self._goal.directions) > 1:
            solutions = [{"params": dict(one.params), "values": list(one.values)} for one in self.front]
            return {"name": "ghm", "solutions": solutions}
        best = self.best
        params = None if best is None else dict(best.params)
        return {"name": "ghm", "best_params": params, "best_value": None if best is None else best.value}

    def _add(self, frozen: FrozenTrial, in_memory: int) -> None:
        assert frozen.number == len(self.trials), "a study has one controller"
        self._ids.append(frozen._trial_id)
        self._copies.append(in_memory)
        self._attributes.append(set(frozen.system_attrs))
        self.trials.append(trial_of(frozen))

    def _keep_attributes(self, number: int) -> None:
        """Samplers and pruners note in memory what they have to know after a restart."""
        noted = _plain(self.memory._storage.get_trial(self._copies[number]).system_attrs)
        for key in noted.keys() - self._attributes[number]:
            self._store("set_trial_system_attr", number, key, noted[key])
            self._attributes[number].add(key)

    def _write(self, what: str, number: int, *values: Any) -> None:
        self._store(what, number, *values)
        getattr(self.memory._storage, what)(self._copies[number], *values)

    def _store(self, what: str, number: int, *values: Any) -> None:
        write: Callable[..., None] = getattr(self._durable._storage, what)
        _patiently(lambda: write(self._ids[number], *values))


def _in_memory(frozen: FrozenTrial) -> FrozenTrial:
    """There, what is queued counts as running: `Study.ask` would hand it out for a new point."""
    if frozen.state == TrialState.WAITING:
        frozen.state, frozen.datetime_start = TrialState.RUNNING, datetime.now()
    frozen.system_attrs = _plain(frozen.system_attrs)
    return frozen


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Without what CMA-ES pickles."""
    return {key: value for key, value in attributes.items() if not key.startswith("cma:")}


def _patiently(write: Callable[[], None]) -> None:
    """Try until the storage takes it: others may hold a lock for a while, and disks are emptied."""

    def said(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            reason = str(state.outcome.exception()).splitlines()[0]
            log.warning("The study's storage does not take a write (%s); trying for %d s", reason, PATIENCE)

    again = retry_if_exception_type((StorageInternalError, OperationalError))
    waits, ends = wait_exponential(multiplier=0.1, max=5), stop_after_delay(PATIENCE)
    Retrying(retry=again, wait=waits, stop=ends, before_sleep=said, reraise=True)(write)
