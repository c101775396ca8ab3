"""A trial of any Hydra program, in the process of its slot: run as Hydra's own launchers run a job, and heard."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ghm.failure import Lost
from ghm.provenance import flat
from ghm.reporting import Ended, heard_by
from sweeps.states import ENDS, Answer

if TYPE_CHECKING:
    from ghm.tracking import Spool


@dataclass(frozen=True)
class HydraTask:
    """What a slot runs."""

    function: TaskFunction
    context: HydraContext
    state: Any
    objective: str
    tracked: bool

    def __call__(self, config: Mapping[str, Any]) -> Any:
        """The function's value; the last that was reported where the sweep ended the trial."""
        if not GlobalHydra.instance().is_initialized():  # the first trial in this process
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
    number: int  # of the trial
    run: int  # of this run of it, in its sweep
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
    spool: "Spool | None" = None

    def begin(self, cfg: DictConfig) -> None:
        if self.tracked:
            from ghm.tracking import Spool  # MLflow takes seconds to import, and is not asked for otherwise

            self.spool = Spool(Path(self.folder), self.attempt)
            tags = {"sweep.name": self.name, "sweep.trial": self.number, "sweep.params": self.params}
            self.spool.start(self.label, tags, self.parent, self.record)
            own = OmegaConf.to_container(cfg, resolve=False)
            assert isinstance(own, dict)
            self.spool.log_params(flat({str(key): value for key, value in own.items() if key != "hydra"}))

    def report(self, step: int, value: float, metrics: Mapping[str, float], steps: int) -> None:
        """Ended where the sweep wants it; Lost where it has given up this attempt."""
        self.value = value
        if self.spool is not None and step > self.spool.last_step():
            self.spool.log_metrics({self.objective: value, **metrics}, step)
        hub = ray.get_actor(self.hub)
        self.answer = Answer(ray.get(hub.report.remote(self.run, self.attempt, step, steps, value, dict(metrics))))
        if self.answer == Answer.LOST:
            raise Lost(f"trial {self.number}: its sweep has given up attempt {self.attempt}, or is gone")
        if self.answer != Answer.GO_ON:
            raise Ended(self.answer.value)

    def end(self, returned: Any) -> None:
        if self.spool is not None:
            if self.value is None and isinstance(returned, int | float):
                self.spool.log_metrics({self.objective: returned}, 0)
            self.spool.finish(ENDS[self.answer])
