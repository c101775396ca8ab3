"""One sweep from start to end: study, lease, slots, and an orderly way out of each."""

import re
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from omegaconf import OmegaConf
from optuna.exceptions import ExperimentalWarning

from ghm.cluster import connected
from ghm.failure import Failed
from ghm.remote import nodes
from ghm.remote.nodes import Sight
from ghm.tracking import Away, Sender, Tracker, link, waiting_at_most
from sweeps import policy, studies
from sweeps.budget import Budget, Meter
from sweeps.controller import Compose, Controller
from sweeps.draw import Search
from sweeps.goal import Goal, Values
from sweeps.lease import Lease, LeaseLost
from sweeps.ledger import Ledger
from sweeps.policy import Rules
from sweeps.record import Record
from sweeps.replicates import Replicates
from sweeps.reuse import Keys, Reuse
from sweeps.slots import Resources, Slots, Task
from sweeps.space import label
from sweeps.states import State
from sweeps.storage import open_storage
from sweeps.view import View


class Incomplete(Failed):
    """A sweep that has ended and lacks points."""


@dataclass(frozen=True)
class Sweep:
    """What is to be done. ValueError for numbers that make no sweep. Times in seconds."""

    name: str
    folder: Path  # holds one folder a trial
    runs: Path  # holds the study's database unless `storage` names another
    goal: Goal
    n_trials: int
    n_jobs: int
    storage: str | None
    max_failure_rate: float
    resources: Resources
    budget: Budget = field(default_factory=Budget)
    replicates: Replicates = field(default_factory=Replicates)
    max_attempts: int = 3
    backoff: float = 5.0
    patience: float = 300.0
    lease: float = 5.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w([\w .-]*[\w-])?", self.name):
            raise ValueError(
                f"hydra.sweeper.study_name={self.name}: may hold letters, digits, space, dot, - and _ only, "
                "and neither begin nor end with a dot or a space"
            )
        for key in ("n_trials", "n_jobs", "max_attempts"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"hydra.sweeper.{key}={value}: must be a whole number of at least 1")
        if not _number(self.max_failure_rate) or not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"hydra.sweeper.max_failure_rate={self.max_failure_rate}: must be in [0, 1]")
        for key, least in (("backoff", 0), ("patience", 1), ("lease", 1)):
            value = getattr(self, key)
            if not _number(value) or not least <= value < float("inf"):
                raise ValueError(f"hydra.sweeper.{key}={value}: must be a number of seconds, at least {least}")
        for key in ("cpus", "gpus"):
            value = getattr(self.resources, key)
            if not _number(value) or not 0 <= value < float("inf"):
                raise ValueError(
                    f"hydra.sweeper.slot.{key}={value} (scaling.slot.{key}): must be a number of at least 0"
                )
        self.budget.check(self.resources.total["GPU"])

    def check_fits(self, tracker: Tracker | None) -> None:
        """ValueError where the connected cluster is too small, or has nodes that would not find what others wrote."""
        self.resources.check(self.n_jobs)
        nodes.refuse_file(
            "hydra.sweeper.storage",
            self.storage,
            "give that of a PostgreSQL, as postgresql+psycopg2://HOST/NAME, in GHM_STORAGE",
        )
        if tracker is not None:
            nodes.refuse_local_tracking(tracker.uri)


@dataclass(frozen=True)
class Program:
    """What the trials of a sweep run: `task`, on what `compose(number, params, label, context)` makes for it, where
    `context` is what a run has to know of its sweep.

    `keys` tells which runs are the same, see `sweeps.reuse`. `pack` fills a folder with the code that all trials are to
    run; False: they take what lies here. `inputs`: what they read, by name, with what tells it apart.
    """

    task: Task
    compose: Compose
    keys: Keys = lambda *_: []
    pack: Callable[[Path], bool] = lambda _: False
    inputs: Mapping[str, Collection[str]] = field(default_factory=dict)


def run_sweep(sweep: Sweep, search: Search, program: Program, tracker: Tracker | None) -> float | Values | None:
    """Run or continue a sweep; the value of its best trial, if any has one, or all values where there are several.

    ValueError for what cannot be begun, and then nothing was; SweepFailed or Incomplete for a sweep that lacks points
    at its end, KeyboardInterrupt for one that was ended before.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.given()
    storage, reuse = open_storage(sweep.storage, sweep.runs), Reuse(tracker, sweep.goal, program.keys)
    with ExitStack() as stack:
        study = studies.find(storage, sweep.name)
        cluster = _Cluster(sweep, tracker, program.pack, stack)
        if study is None:
            if left_out := search.left_out(sweep.n_trials):
                print(left_out)
            first, seed = search.preview(sweep.n_trials, 1)[0][0], sweep.replicates.seed(0)
            if reuse.find(first, seed) is None:
                cluster.connect()
            study = studies.create(storage, sweep.name, sweep.goal.directions, sweep.folder)
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                study.set_metric_names(list(sweep.goal.objectives))  # as the dashboard of studies calls them
        lease = stack.enter_context(Lease(storage, study._study_id, sweep.name, sweep.lease))
        studies.claim(study, search.space, sweep.goal, sweep.replicates)
        again = None if search.lasting is None else lambda ledger: search.draw(ledger, sweep.n_trials)
        ledger = Ledger(study, search.pruner, again)
        total = search.total(ledger, sweep.n_trials)
        rules = Rules(total, sweep.max_failure_rate, sweep.max_attempts, sweep.backoff, sweep.patience)
        record = Record(sweep.name, ledger.key, sweep.folder, sweep.replicates)
        record.compare_inputs(program.inputs)
        unfinished = len(ledger.trials) < total or ledger.count(State.QUEUED) > 0
        meter = Meter(sweep.budget, sweep.resources.total["GPU"], ledger.used, lambda: ledger.epochs)
        affordable = meter.allows()
        if unfinished and affordable and ledger.trials:
            cluster.connect()
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with nullcontext() if tracker is None else Sender(tracker, record.folders), _orderly_end(ledger, record):
            _point(ledger, tracker, sweep, search.space.keys)
            record.begin(sweep.goal, search.space.keys, search.space.group, program.inputs)
            if unfinished and affordable:
                takes = sweep.resources.total
                seen = View(sweep.name, sweep.goal, total, meter, sweep.replicates, takes=takes)
                with _slots(sweep, program.task, cluster) as slots, seen as view:
                    controller = Controller(
                        goal=sweep.goal,
                        lease=lease,
                        ledger=ledger,
                        search=search,
                        slots=slots,
                        compose=program.compose,
                        record=record,
                        view=view,
                        rules=rules,
                        meter=meter,
                        reuse=reuse,
                        replicates=sweep.replicates,
                    )
                    _run(controller)
                    affordable = controller.complete
                ledger.keep_used(meter.used)
            if unfinished and not affordable:
                print(_out_of_budget(meter, ledger, rules))
            _refuse_gaps(sweep.name, search, ledger, rules)
        if (best := ledger.best) is None:
            return None
        return best.values if sweep.goal.several else best.value


def _point(ledger: Ledger, tracker: Tracker | None, sweep: Sweep, keys: Sequence[str]) -> None:
    """Have the study say where its sweep is in MLflow, if that is a server and answers."""
    if tracker is not None and not tracker.local:
        with suppress(Away), waiting_at_most(5):
            there = link(tracker.uri, tracker.experiment_id, ledger.key)
            searched = ", ".join(f"`{key}`" for key in keys) or "one point"
            ledger.point_to(
                there,
                f"**[Curves, runs and report of this sweep in MLflow]({there})**\n\n"
                f"It searches {searched} for {sweep.goal} a training reaches.\n",
            )


@dataclass
class _Cluster:
    """The Ray that runs a sweep: connected, and found large enough, as soon as there is anything to run."""

    sweep: Sweep
    tracker: Tracker | None
    pack: Callable[[Path], bool]
    until: ExitStack
    connected: bool = False

    def connect(self) -> None:
        if not self.connected:
            code = Path(self.until.enter_context(TemporaryDirectory(prefix="ghm-")))
            self.until.enter_context(connected(code if self.pack(code) else None))
            self.sweep.check_fits(self.tracker)
            self.connected = True

    def look(self) -> Sight:
        self.connect()
        return Sight(self.sweep.folder)


@contextmanager
def _slots(sweep: Sweep, task: Task, cluster: _Cluster) -> Iterator[Slots]:
    slots = Slots(sweep.n_jobs, sweep.resources, sweep.patience, task, cluster.look)
    try:
        yield slots
    finally:
        slots.close()


def _run(controller: Controller) -> None:
    """Run every trial that has not ended. KeyboardInterrupt when it was drained before that."""
    with _draining(controller):
        controller.run()
    if not controller.complete and controller.draining:
        raise KeyboardInterrupt


def _out_of_budget(meter: Meter, ledger: Ledger, rules: Rules) -> str:
    waiting, begun = ledger.count(State.QUEUED), len(ledger.trials)
    return (
        f"The budget is spent: {meter}. {waiting} of {rules.n_trials} trials wait, {rules.n_trials - begun} are not "
        "drawn; the same command with a larger hydra.sweeper.budget goes on"
    )


@contextmanager
def _draining(controller: Controller) -> Iterator[None]:
    """The first Ctrl-C, or a terminal that is lost, drains the sweep; the next one does what it did before."""
    signals = [signal.SIGINT, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in signals}

    def drain(*_: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        controller.drain()

    mine = threading.current_thread() is threading.main_thread()
    for number, handler in before.items():
        if mine and handler != signal.SIG_IGN:  # as nohup asks
            signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is drain:
                signal.signal(number, handler)


@contextmanager
def _orderly_end(ledger: Ledger, record: Record) -> Iterator[None]:
    """However the work ends: no trial is left running, and the record says what the ledger does."""
    state = State.FAILED
    try:
        yield
        state = State.DONE
    except (KeyboardInterrupt, SystemExit):
        state = State.QUEUED  # the same command goes on
        raise
    except LeaseLost:
        state = State.RUNNING  # by somebody else
        raise
    finally:
        if state != State.RUNNING:
            for trial in ledger.trials:
                if trial.state == State.RUNNING:
                    ledger.requeue(trial.number)
            OmegaConf.save(ledger.results(), record.folder / "optimization_results.yaml")
            record.finish(state, ledger.trials)


def _refuse_gaps(name: str, search: Search, ledger: Ledger, rules: Rules) -> None:
    """Incomplete for a sweep that ended without all of its points."""
    gaps = policy.missing(ledger.trials, search.points(rules.n_trials) is not None)
    if gaps:
        listed = "; ".join(f"trial {gap.number}, {label(gap.params)}: {gap.reason}" for gap in gaps)
        raise Incomplete(
            f"{len(gaps)} of {rules.n_trials} points are missing: {listed}. "
            f"Once the cause is gone, `ghm retry {name}` queues them again, and the same command runs them"
        )
    if policy.failures(ledger.trials, rules):
        raise Incomplete(f"more trials failed than hydra.sweeper.max_failure_rate={rules.max_failure_rate} allows")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
