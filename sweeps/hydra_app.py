"""Any Hydra program in a sweep: its task is run as Hydra's own launchers run it, in the slots of the engine."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ghm.failure import Failed
from ghm.secrets import hidden
from ghm.tracking import Spool, Tracker
from sweeps.composer import Composer
from sweeps.draw import Search
from sweeps.hydra_task import HydraTask
from sweeps.launch import Sweep
from sweeps.slots import Resources
from sweeps.space import Params, title


class HydraApp:
    """What a program is that names no other `sweep_app`: needs no key of ours, and MLflow only if given an address."""

    objective: str | list[str] = "value"
    seed, steps = None, None
    inputs: Mapping[str, set[str]] = {}

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
        self.task = HydraTask(task, context, Singleton.get_state(), first, self._tracked)

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
            cfg.hydra.sweep.dir = str(self.folder)
            cfg.hydra.sweep.subdir = str(Path(context["folder"]).relative_to(self.folder))
            cfg.hydra.job.num, cfg.hydra.job.id = context["run"], f"{cfg.hydra.job.name}_{context['run']}"
        about = {"number": number, "label": title(number, label)}
        return {"cfg": cfg, "trial": about | {"params": json.dumps(params)} | context}

    def pack(self, folder: Path) -> bool:
        """Nothing: a program may look for files beside its own."""
        return False

    def same(self, composer: Composer, overrides: list[str]) -> list[str]:
        """Nothing: what a program's numbers depend on is its own to know."""
        return []

    def show(self, composer: Composer, search: Search, sweep: Sweep) -> None:
        """Print the points of a finite space, or the first that are drawn of a larger one."""
        points, whole = search.preview(sweep.n_trials, sweep.n_jobs)
        first = f"of which the first {len(points)} would be, as long as nothing is known of any"
        print(f"{len(points)} trials:" if whole else f"{sweep.n_trials} trials, {first}:")
        for number, point in enumerate(points):
            overrides = search.space.overrides(point)
            composer.whole(overrides)
            print(hidden(f"  {number}: {' '.join(overrides)}"))

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
