"""Any Hydra program in a sweep: its task is run as Hydra's own launchers run it, in the slots of the engine."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ghm.failure import Failed, Lost
from ghm.provenance import flat
from ghm.reporting import Ended, heard_by
from ghm.secrets import hidden
from ghm.tracking import Spool, Tracker
from sweeps.composer import Composer
from sweeps.slots import Resources
from sweeps.space import Params, title
from sweeps.states import Answer, State

ENDS = {Answer.GO_ON: State.DONE, Answer.PRUNE: State.PRUNED, Answer.DRAIN: State.QUEUED}


class HydraApp:
    """What a program is that names no other `sweep_app`: needs no key of ours, and MLflow only if given an address."""

    objective: str | list[str] = "value"
    seed, steps = None, None

    def __init__(self, settings: DictConfig, master: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        self._settings = settings
        self.runs = Path(settings.runs).resolve()
        own = str(OmegaConf.to_container(master.hydra.sweep, resolve=False)["dir"])
        usual = own.startswith("multirun/${now")  # Hydra's default, which a sweep that goes on would not find again
        self.folder = self.runs / str(settings.study_name) if usual else Path(master.hydra.sweep.dir).resolve()
        self._tracked = settings.tracking.uri is not None
        several = not isinstance(settings.direction, str)
        if several:
            self.objective = [f"value_{place}" for place in range(len(settings.direction))]
        named = settings.objective or self.objective
        first = named if isinstance(named, str) else named[0]
        self.task = _Task(task, context, Singleton.get_state(), first, self._tracked)

    def resources(self) -> Resources:
        slot = self._settings.slot
        return Resources(1 if slot.cpus is None else slot.cpus, slot.gpus or 0)

    def tracker(self) -> Tracker | None:
        """ValueError where the server of a new sweep does not answer."""
        if not self._tracked:
            return None
        tracker = Tracker.open(self._settings.tracking.uri, self._settings.tracking.experiment, str(self.runs))
        return tracker.reach() if Spool(self.folder).key is None else tracker

    def check(self, composer: Composer, overrides: list[str]) -> None:
        """An error of Hydra's where these do not compose."""
        composer.whole(overrides)

    def config(
        self, composer: Composer, overrides: list[str], number: int, label: str, params: Params, context: dict[str, Any]
    ) -> Any:
        """A trial's, for `task`: with Hydra's own node, and beside it what the trial has to know of its sweep."""
        cfg = composer.whole(overrides)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir = str(self.folder), f"{number:04d}"
            cfg.hydra.job.num, cfg.hydra.job.id = number, f"{cfg.hydra.job.name}_{number}"
        about = {"folder": str(self.folder / f"{number:04d}"), "number": number, "label": title(number, label)}
        return {"cfg": cfg, "trial": about | {"params": json.dumps(params)} | context}

    def failed(self, error: BaseException) -> None:
        """End the program with one line and the code that fits, where it is no mistake of ours."""
        if isinstance(error, KeyboardInterrupt):
            print("ghm: interrupted; the same command with the same study_name goes on", file=sys.stderr)
            raise SystemExit(130) from error
        if isinstance(error, ValueError | HydraException | Failed):
            print(f"ghm: {hidden(' '.join(str(error).split()))}", file=sys.stderr)
            raise SystemExit(1 if isinstance(error, Failed) else 2) from error

    def finished(self, gaps: Failed | None) -> None:
        """Say what came of it; Failed where points are missing."""
        results = self.folder / "optimization_results.yaml"
        print(f"{OmegaConf.to_yaml(OmegaConf.load(results)).strip()}\nThis is {results}")
        if gaps is not None:
            raise gaps


@dataclass(frozen=True)
class _Task:
    """What a slot runs."""

    function: TaskFunction
    context: HydraContext
    state: Any
    objective: str
    tracked: bool

    def __call__(self, config: Mapping[str, Any]) -> Any:
        """The function's value; the last that was reported where the sweep ended the trial."""
        setup_globals()
        Singleton.set_state(self.state)
        trial, cfg = _Trial(self.objective, self.tracked, **config["trial"]), config["cfg"]
        trial.begin(cfg)

        def guarded(own: DictConfig) -> Any:
            try:
                return self.function(own)
            except Ended:
                return trial.value

        with heard_by(trial):
            job = run_job(guarded, cfg, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)
        returned = job.return_value
        if returned is None:
            raise TypeError("the task returned nothing; a sweep needs its value: a number, or one for each objective")
        trial.end(returned)
        return returned


@dataclass
class _Trial:
    """A trial that runs, as its sweep and MLflow hear of it."""

    objective: str
    tracked: bool
    folder: str
    number: int
    label: str
    params: str
    name: str
    attempt: int
    hub: str
    record: str
    parent: str
    shared: bool
    mark: str
    epochs: int
    answer: Answer = Answer.GO_ON
    value: float | None = None
    spool: Spool = field(init=False)

    def __post_init__(self) -> None:
        self.spool = Spool(Path(self.folder), self.attempt)

    def begin(self, cfg: DictConfig) -> None:
        if self.tracked:
            tags = {"sweep.name": self.name, "sweep.trial": self.number, "sweep.params": self.params}
            self.spool.start(self.label, tags, self.parent, self.record)
            own = OmegaConf.to_container(cfg, resolve=False)
            assert isinstance(own, dict)
            self.spool.log_params(flat({str(key): value for key, value in own.items() if key != "hydra"}))

    def report(self, step: int, value: float, metrics: Mapping[str, float], steps: int) -> None:
        """Ended where the sweep wants it; Lost where it has given up this attempt."""
        self.value = value
        if self.tracked and step > self.spool.last_step():
            self.spool.log_metrics({self.objective: value, **metrics}, step)
        hub = ray.get_actor(self.hub)
        self.answer = Answer(ray.get(hub.report.remote(self.number, self.attempt, step, steps, value, dict(metrics))))
        if self.answer == Answer.LOST:
            raise Lost(f"trial {self.number}: its sweep has given up attempt {self.attempt}, or is gone")
        if self.answer != Answer.GO_ON:
            raise Ended(self.answer.value)

    def end(self, returned: Any) -> None:
        if self.tracked:
            if self.value is None and isinstance(returned, int | float):
                self.spool.log_metrics({self.objective: returned}, 0)
            self.spool.finish(ENDS[self.answer])
