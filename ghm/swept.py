"""Our own program in a sweep: each trial is a training that records itself in MLflow and goes on from checkpoints."""

import inspect
import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ghm import plan, provenance
from ghm.failure import Failed
from ghm.job import Job, group_sizes
from ghm.record import same
from ghm.record.description import COMPARED
from ghm.record.devices import possible
from ghm.remote.submission import pack_code
from ghm.secrets import hidden
from ghm.settings import choices
from ghm.settings.checks import check
from ghm.settings.paths import plain
from ghm.task import Task
from ghm.tracking import SAME, Spool, Tracker
from ghm.verbs.report import after_sweep
from sweeps.composer import Composer
from sweeps.draw import Search
from sweeps.launch import Sweep
from sweeps.replicates import Replicates
from sweeps.slots import Resources
from sweeps.space import Params, title
from sweeps.storage import open_storage
from sweeps.studies import find
from sweeps.trials import identity, trial_of


class Trainings:
    """The `sweep_app` of `ghm.run.train`."""

    def __init__(self, settings: DictConfig, master: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        self._master, self._settings = master, settings
        self.task = Task(inspect.unwrap(task))  # without what the command line wrapped around it
        self.folder, self.runs = Path(master.hydra.sweep.dir).resolve(), Path(master.runs)
        self.objective, self.seed, self.steps = master.objective, master.seed, master.epochs
        self.inputs: dict[str, set[str]] = {}  # what the trainings read: see `same.inputs`
        self._last: tuple[list[str], dict[str, Any], Job] | None = None

    def resources(self) -> Resources:
        own, scaling = self._settings.slot, self._master.scaling
        cpus, gpus = (scaling.slot[key] if own[key] is None else own[key] for key in ("cpus", "gpus"))
        workers, _ = group_sizes(scaling.num_workers)
        return Resources(cpus, gpus, *((workers, scaling.cpus, scaling.gpus) if workers else ()))

    def tracker(self) -> Tracker:
        """ValueError where a new sweep's does not answer: its address may be wrong."""
        tracker = self._open()
        return tracker.reach() if Spool(self.folder).key is None else tracker

    def _open(self) -> Tracker:
        return Tracker.open(self._master.tracking.uri, self._master.tracking.experiment, self._master.runs)

    def check(self, composer: Composer, overrides: list[str]) -> None:
        """ValueError for settings that no training can have."""
        made, job = self._job(composer, overrides)
        check(OmegaConf.create(made))
        for name, told in same.inputs(job).items():
            self.inputs.setdefault(name, set()).add(told)

    def pack(self, folder: Path) -> bool:
        """Fill a folder with the code that all trials are to run."""
        pack_code(folder)
        return True

    def config(
        self, composer: Composer, overrides: list[str], number: int, label: str, params: Params, context: dict[str, Any]
    ) -> Any:
        """A trial's, for `task`."""
        made, job = self._job(composer, overrides)
        trial = {"trial": number, "label": title(number, label), "params": json.dumps(params)}
        trial |= {"command": provenance.command(), "inputs": json.dumps(same.inputs(job))}
        made = made | {"dir": context.pop("folder")}
        made["trial"] = made["trial"] | trial | context
        provenance.record(Path(made["dir"]), made, overrides)
        return made

    def same(self, composer: Composer, overrides: list[str]) -> list[str]:
        """What a training is the same by, for each device that it may get."""
        _, job = self._job(composer, overrides)
        devices = possible(job.settings.device, self.resources().total["GPU"])
        return [key for key in (same.key(job, device) for device in devices) if key is not None]

    def _job(self, composer: Composer, overrides: list[str]) -> tuple[dict[str, Any], Job]:
        """Its whole config, resolved, and what is made of it; kept, as it is asked for several times."""
        if self._last is None or self._last[0] != overrides:
            cfg = composer.compose(overrides)
            choices.note(cfg)
            made = plain(cfg)
            self._last = list(overrides), made, Job.of_plain(made)
        return self._last[1:]

    def show(self, composer: Composer, search: Search, sweep: Sweep) -> None:
        """Compose and check every training of a finite space, or the first of a larger one, and say what they take."""
        states = _states(sweep)
        points, whole = search.preview(sweep.n_trials, sweep.n_jobs)
        planned, runs, finished = [], sweep.replicates.count, self._open().finished()
        done = {one.data.tags.get(SAME, "") for one in finished} - {""} if self._settings.reuse else set()
        checked: set[str] = set()
        for point in points:
            overrides = search.space.overrides(point)
            made, job = self._job(composer, overrides)
            but_seed = _but_seed(made)
            if but_seed not in checked:
                check(OmegaConf.create(made))
                checked.add(but_seed)
            given = dict(one.split("=", 1) for one in self._given(overrides))
            given |= {key: str(value) for key, value in job.settings.flat().items() if key in COMPARED}
            known = self._known(composer, overrides, sweep.replicates, done)
            state = states.get(identity(point), "known" if known == runs else "new")
            own, epochs = job.settings.fingerprint, job.settings.epochs
            given |= made["choices"]
            planned.append(plan.Planned(" ".join(overrides), own, epochs, given, state, runs, known))
        if left_out := search.left_out(sweep.n_trials):
            print(left_out)
        needs = plan.need(planned, plan.past(finished), sweep.n_jobs)
        print(hidden("\n".join(plan.told(planned, None if whole else sweep.n_trials, needs, sweep.n_jobs))))

    def _known(self, composer: Composer, overrides: list[str], seeds: Replicates, done: set[str]) -> int:
        """How many of a trial's runs are among those that are done."""
        if not done:
            return 0
        runs = [seeds.seeded(overrides, seeds.seed(replicate)) for replicate in range(seeds.count)]
        return sum(not done.isdisjoint(self.same(composer, run)) for run in runs)

    def _given(self, overrides: list[str]) -> list[str]:
        whole = [*self._master.hydra.overrides.task, *overrides]
        return [one.lstrip("+") for one in whole if "=" in one]

    def failed(self, error: BaseException) -> None:
        """What an error means is the command line's to say."""

    def finished(self, gaps: Failed | None) -> None:
        """Write and show the report; Failed where points are missing, or nothing was learned."""
        HydraConfig.instance().set_config(self._master)
        after_sweep(self._master, gaps)


def _but_seed(made: dict[str, Any]) -> str:
    """Equal for configs that differ in nothing that makes one of them wrong."""
    seed = made["seed"]
    sound = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
    return json.dumps(made | {"dir": ""} | ({"seed": 0} if sound else {}), sort_keys=True, default=str)


def _states(sweep: Sweep) -> dict[str, str]:
    """Of the trials that the study has, by identity; nothing is made where there is none."""
    if sweep.storage is None and not (sweep.runs / "optuna.db").exists():
        return {}
    study = find(open_storage(sweep.storage, sweep.runs), sweep.name)
    trials = [] if study is None else study.get_trials(deepcopy=False)
    return {identity(one.params): known.state.value for one in trials for known in [trial_of(one)]}
