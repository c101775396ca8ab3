"""Hydra's face of the sweep engine. Hydra imports this at every start, so it imports little itself."""

import random
import warnings
from inspect import signature
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from sweeps.draw import Search
    from sweeps.goal import Values
    from sweeps.launch import Sweep
    from sweeps.replicates import Replicates
    from sweeps.space import Space


# Samplers that draw by their seed and the trials alone: one made anew for each trial is as good, and needs no history.
REPEATABLE = ("RandomSampler", "TPESampler", "GPSampler")


class GHMSweeper(Sweeper):
    """Composes what the engine in `sweeps` runs; conf/ghm.yaml explains the settings."""

    def __init__(self, **settings: Any) -> None:
        """Hydra gives the settings once more to `setup`, within the config that they refer to."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.master = hydra_context, config
        self.settings = OmegaConf.create(OmegaConf.to_container(config.hydra.sweeper, resolve=True))
        self.task = task_function

    def sweep(self, arguments: list[str]) -> "float | Values | None":
        """Check, then run or continue the sweep; what `run_sweep` returns."""
        app = get_class(getattr(self.task, "sweep_app", "sweeps.hydra_app.HydraApp"))(
            self.settings, self.master, self.context, self.task
        )
        try:
            return self._run(app, arguments)
        except BaseException as error:
            app.failed(error)
            raise

    def _run(self, app: Any, arguments: list[str]) -> "float | Values | None":
        import optuna

        from sweeps.composer import Composer
        from sweeps.conditional import widen
        from sweeps.controller import SweepFailed
        from sweeps.grammar import parse
        from sweeps.launch import Incomplete, Program, run_sweep

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings, loader = self.settings, self.context.config_loader
        sweep = self._sweep(app)
        composer = Composer(loader, self.master)
        space = parse(arguments, settings.params, settings.when, loader)
        if settings.search:
            space = widen(space, settings.search, composer)
        search = self._search(space, sweep, app)
        seeds = sweep.replicates
        if seeds.count > 1 and seeds.key in space.keys:
            raise ValueError(
                f"{seeds.key}: is swept, and hydra.sweeper.replicates runs each trial with seeds; drop one of them"
            )
        for probe in space.probes():
            app.check(composer, seeds.seeded(space.overrides(probe), seeds.seed(0)))
        if settings.dry_run:
            app.show(composer, search, sweep)
            return None

        def compose(number: int, params: dict[str, Any], label: str, context: dict[str, Any]) -> Any:
            overrides = seeds.seeded(space.overrides(params), context.pop("seed"))
            return app.config(composer, overrides, number, label, params, context)

        def keys(params: dict[str, Any], seed: int | None) -> list[str]:
            return app.same(composer, seeds.seeded(space.overrides(params), seed)) if settings.reuse else []

        best, gaps = None, None
        try:
            best = run_sweep(sweep, search, Program(app.task, compose, keys, app.pack, app.inputs), app.tracker())
        except (SweepFailed, Incomplete) as error:
            gaps = error
        app.finished(gaps)
        return best

    def _sweep(self, app: Any) -> "Sweep":
        from sweeps.budget import Budget
        from sweeps.goal import Goal
        from sweeps.launch import Sweep

        settings = self.settings
        bounds = {key: dict(settings[key] or {}) for key in ("at_most", "at_least")}
        return Sweep(
            name=str(settings.study_name),
            folder=app.folder,
            runs=app.runs,
            goal=Goal.of(settings.objective or app.objective, settings.direction, **bounds),
            resources=app.resources(),
            budget=Budget(**settings.budget),
            replicates=self._replicates(),
            **{key: settings[key] for key in ("n_trials", "n_jobs", "storage", "max_failure_rate")},
            **{key: settings[key] for key in ("max_attempts", "backoff", "patience", "lease")},
        )

    def _replicates(self) -> "Replicates":
        from sweeps.replicates import Replicates

        settings, first = self.settings, 0
        if settings.replicates != 1:
            first = OmegaConf.select(self.master, settings.seed_key)
            if first is None:
                raise ValueError(
                    f"hydra.sweeper.seed_key={settings.seed_key}: hydra.sweeper.replicates={settings.replicates} needs "
                    "a key of the program that takes the seed of a run, a whole number; name it"
                )
        return Replicates(settings.replicates, settings.aggregate, settings.race, settings.seed_key, first)

    def _search(self, space: "Space", sweep: "Sweep", app: Any) -> "Search":
        from sweeps.draw import Search, refuse_unfit

        settings = self.settings
        seeds = (OmegaConf.select(settings, "sampler.seed"), settings.seed, app.seed)
        seed = next((one for one in seeds if one is not None), None)

        def make_sampler(number: int, again: int) -> Any:
            if seed is None:  # each draw by chance
                return self._made("sampler")
            # Mixed, not added: the first draws from neighbouring seeds can be nearly equal.
            return self._made("sampler", seed=random.Random(hash((seed, number)) + again).getrandbits(32))

        sampler, pruner = make_sampler(0, 0), self._made("pruner", **self._steps(app))
        refuse_unfit(sweep.goal, make_sampler(0, 0), pruner)
        known = [space.known(one) for several in OmegaConf.to_container(settings.known).values() for one in several]
        known = [one for place, one in enumerate(known) if one is not None and one not in known[:place]]
        first = known + OmegaConf.to_container(settings.enqueue)
        lasting = None if type(sampler).__name__ in REPEATABLE else sampler
        return Search(space, make_sampler, pruner, first, lasting)

    def _steps(self, app: Any) -> dict[str, Any]:
        """What a pruner has to know of the length of a trial."""
        asks = OmegaConf.select(self.settings, "pruner.max_resource") == "auto"
        return {"max_resource": app.steps} if asks and app.steps else {}

    def _made(self, part: str, **changes: Any) -> Any:
        """The sampler or the pruner; ValueError where there is none of that name, or its keys do not fit."""
        from optuna.exceptions import ExperimentalWarning

        from ghm.settings.targets import call
        from sweeps.trials import violations

        settings = self.settings[part]
        if not isinstance(settings, DictConfig):
            raise ValueError(
                f"hydra.sweeper.{part}={settings}: is a choice of files, not a value; "
                f"write hydra/sweeper/{part}={settings}"
            )
        if (
            settings.get("_target_") == "optuna.samplers.GridSampler"
        ):  # as Hydra's own plugin has it: without its points
            settings = OmegaConf.create({"_target_": "optuna.samplers.BruteForceSampler", "seed": None})
        bounded = part == "sampler" and (self.settings.at_most or self.settings.at_least)
        try:
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                made = call(settings, **changes)
                if bounded and "constraints_func" in signature(type(made)).parameters:
                    made = call(settings, **changes, constraints_func=violations)
            return made
        except (InstantiationException, ValueError, TypeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"hydra.sweeper.{part}._target_={settings._target_}: cannot be made ({reason})") from error
