"""Hydra's face of the sweep engine. Hydra imports this at every start, so it imports little itself."""

import inspect
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from sweeps.launch import Sweep


class GHMSweeper(Sweeper):
    """Composes what the engine in `sweeps` runs; conf/hydra/sweeper/ghm.yaml explains the settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OmegaConf.create(settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config
        self.task = inspect.unwrap(task_function)  # without what the command line wrapped around it

    def sweep(self, arguments: list[str]) -> float | None:
        """Check, then run or continue the sweep; its best value, if any trial has one."""
        from ghm.tracking import Tracker
        from sweeps.controller import Search
        from sweeps.launch import run_sweep
        from sweeps.space import parse

        settings, tracking = self.settings, self.master.tracking
        sweep = self._sweep()
        space = parse(arguments, settings.params, settings.when, self.loader)
        check = get_method(settings.check)
        for probe in space.probes():
            check(self._compose(space.overrides(probe)))

        def compose(number: int, params: dict[str, Any], label: str, context: dict[str, Any]) -> dict[str, Any]:
            overrides = space.overrides(params)
            cfg = self._compose(overrides)
            cfg.dir = str(sweep.folder / f"{number:04d}")
            trial = {"trial": number, "label": f"{number:03d} {label}", "params": json.dumps(params)}
            OmegaConf.update(cfg, "trial", trial | context)
            container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
            _record(Path(cfg.dir) / ".hydra", container, overrides)
            return container

        tracker = Tracker.open(tracking.uri, tracking.experiment, self.master.runs)
        search = Search(space, self._make_sampler, instantiate(settings.pruner))
        return run_sweep(sweep, search, self.task, compose, tracker)

    def _sweep(self) -> "Sweep":
        from sweeps.launch import Sweep

        settings = self.settings
        return Sweep(
            name=str(settings.study_name),
            folder=Path(self.master.hydra.sweep.dir).resolve(),
            runs=Path(self.master.runs),
            direction=settings.direction,
            n_trials=settings.n_trials,
            n_jobs=settings.n_jobs,
            storage=settings.storage,
            max_failure_rate=settings.max_failure_rate,
            first=OmegaConf.to_container(settings.enqueue),
            cpus=settings.slot.cpus,
            gpus=settings.slot.gpus,
            objective=self.master.objective,
        )

    def _make_sampler(self, begun: int) -> Any:
        seed = self.settings.sampler.get("seed")
        if seed is None:
            return instantiate(self.settings.sampler)
        # Mixed, not added: the first draws from neighbouring seeds can be nearly equal.
        return instantiate(self.settings.sampler, seed=random.Random(hash((seed, begun))).getrandbits(32))

    def _compose(self, overrides: list[str]) -> DictConfig:
        """A job's config without Hydra's own node, its paths as the sweep has them."""
        cfg = self.loader.load_sweep_config(self.master, overrides)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        OmegaConf.set_struct(cfg, True)
        return cfg


def _record(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """What Hydra leaves in each job's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), folder / "overrides.yaml")
