"""Hydra's face of the sweep engine. Hydra imports this at every start, so it imports little itself."""

import json
import random
import warnings
from inspect import signature, unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from sweeps.goal import Values
    from sweeps.launch import Sweep


# Samplers that draw by their seed and the trials alone: one made anew for each trial is as good, and needs no history.
REPEATABLE = ("RandomSampler", "TPESampler", "GPSampler")


class GHMSweeper(Sweeper):
    """Composes what the engine in `sweeps` runs; conf/hydra/sweeper/ghm.yaml explains the settings."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OmegaConf.create(settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config
        self.task = unwrap(task_function)  # without what the command line wrapped around it

    def sweep(self, arguments: list[str]) -> "float | Values | None":
        """Check, then run or continue the sweep; what `run_sweep` returns."""
        import optuna

        from ghm import choices
        from ghm.provenance import command, record
        from ghm.tracking import Spool, Tracker
        from sweeps.composer import Composer
        from sweeps.conditional import widen
        from sweeps.controller import SweepFailed
        from sweeps.draw import Search, refuse_unfit
        from sweeps.grammar import parse
        from sweeps.launch import Incomplete, run_sweep
        from sweeps.space import title

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings, tracking = self.settings, self.master.tracking
        sweep = self._sweep()
        composer = Composer(self.loader, self.master)
        space = parse(arguments, settings.params, settings.when, self.loader)
        if settings.search:
            space = widen(space, settings.search, composer)
        sampler = self._make_sampler(0, 0)  # first, so that a mistake is seen before anything is made
        pruner = self._made("pruner")
        refuse_unfit(sweep.goal, self._make_sampler(0, 0), pruner)
        check = get_method(settings.check)
        for probe in space.probes():
            check(composer.compose(space.overrides(probe)))

        def compose(number: int, params: dict[str, Any], label: str, context: dict[str, Any]) -> dict[str, Any]:
            overrides = space.overrides(params)
            cfg = composer.compose(overrides)
            choices.note(cfg)
            cfg.dir = str(sweep.folder / f"{number:04d}")
            trial = {"trial": number, "label": title(number, label), "params": json.dumps(params), "command": command()}
            OmegaConf.update(cfg, "trial", trial | context)
            container: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
            record(Path(cfg.dir), cfg, overrides)
            return container

        tracker = Tracker.open(tracking.uri, tracking.experiment, self.master.runs)
        if Spool(sweep.folder).key is None:  # a new one's address may be wrong
            tracker.reach()
        known = [space.known(one) for several in OmegaConf.to_container(settings.known).values() for one in several]
        known = [one for place, one in enumerate(known) if one is not None and one not in known[:place]]
        first = known + OmegaConf.to_container(settings.enqueue)
        lasting = None if type(sampler).__name__ in REPEATABLE else sampler
        search = Search(space, self._make_sampler, pruner, first, lasting)
        best, gaps = None, None
        try:
            best = run_sweep(sweep, search, self.task, compose, tracker)
        except (SweepFailed, Incomplete) as error:
            gaps = error
        HydraConfig.instance().set_config(self.master)
        get_method(settings.report)(self.master, gaps)
        return best

    def _sweep(self) -> "Sweep":
        from ghm.job import group_sizes
        from sweeps.budget import Budget
        from sweeps.goal import Goal
        from sweeps.launch import Sweep
        from sweeps.slots import Resources

        settings, scaling = self.settings, self.master.scaling
        workers, _ = group_sizes(scaling.num_workers)
        group = (workers, scaling.cpus, scaling.gpus) if workers else ()
        return Sweep(
            name=str(settings.study_name),
            folder=Path(self.master.hydra.sweep.dir).resolve(),
            runs=Path(self.master.runs),
            goal=Goal.of(
                self.master.objective,
                settings.direction,
                **{key: dict(settings[key] or {}) for key in ("at_most", "at_least")},
            ),
            n_trials=settings.n_trials,
            n_jobs=settings.n_jobs,
            storage=settings.storage,
            max_failure_rate=settings.max_failure_rate,
            resources=Resources(settings.slot.cpus, settings.slot.gpus, *group),
            budget=Budget(**settings.budget),
            **{key: settings[key] for key in ("max_attempts", "backoff", "patience", "lease")},
        )

    def _bounded(self) -> bool:
        return bool(self.settings.at_most or self.settings.at_least)

    def _make_sampler(self, number: int, again: int) -> Any:
        seed = OmegaConf.select(self.settings, "sampler.seed")
        if seed is None:
            return self._made("sampler")
        # Mixed, not added: the first draws from neighbouring seeds can be nearly equal.
        return self._made("sampler", seed=random.Random(hash((seed, number)) + again).getrandbits(32))

    def _made(self, part: str, **changes: Any) -> Any:
        """The sampler or the pruner; ValueError where there is none of that name, or its keys do not fit."""
        from optuna.exceptions import ExperimentalWarning

        from sweeps.ledger import violations

        settings = self.settings[part]
        if not isinstance(settings, DictConfig):
            raise ValueError(
                f"hydra.sweeper.{part}={settings}: is a choice of files, not a value; "
                f"write hydra/sweeper/{part}={settings}"
            )
        try:
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                made = instantiate(settings, **changes)
                if part == "sampler" and self._bounded() and "constraints_func" in signature(type(made)).parameters:
                    made = instantiate(settings, **changes, constraints_func=violations)
            return made
        except (InstantiationException, ValueError, TypeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"hydra.sweeper.{part}._target_={settings._target_}: cannot be made ({reason})") from error
