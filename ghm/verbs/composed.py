"""A verb's task, run with the config that Hydra composes from the command line."""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ghm.provenance import record
from ghm.settings import choices, own_ranges
from ghm.settings.paths import CONF

# Hydra 1.3 asks whose defaults are meant; from 1.4 on they are its own.
BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


ID = re.compile("[0-9a-f]{32}")  # of MLflow's runs


def name_run() -> None:
    """Have `ghm VERB RUN` mean run=RUN; quoted where it is an id, which may look like a number."""
    words = [f"'{word}'" if ID.fullmatch(word) else word for word in sys.argv[1:]]
    sys.argv[1:] = [word if "=" in word or word.startswith("-") else f"run={word}" for word in words]


def of_sweep(overrides: list[str]) -> DictConfig:
    """The config of a sweep that is not run now, with Hydra's own node."""
    config = training(overrides)
    HydraConfig.instance().set_config(config)
    return config


def training(overrides: list[str]) -> DictConfig:
    """What `ghm train` would compose, with Hydra's own node, and with the files that the command which runs finds."""
    if GlobalHydra.instance().is_initialized():
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration("train", overrides, RunMode.RUN, from_shell=False)
    with hydra.initialize_config_dir(str(CONF), **BASE):
        return hydra.compose("train", overrides, return_hydra_config=True)


def _prefer_own_plugin() -> None:
    """Have Hydra find the sweeper of this source before one that is installed: it may run from a copy of the code."""
    beside = str(CONF.parent / "sweeps")
    if (CONF.parent / "sweeps" / "hydra_plugins").is_dir() and beside not in sys.path:
        sys.path.insert(0, beside)


def run(task: Callable[[DictConfig], Any], config: str) -> Any:
    """Return what the task returns, or raise what it raises; None where `--cfg` or `--info` only show the config."""
    _prefer_own_plugin()
    errors: list[BaseException] = []
    results: list[Any] = []

    # Hydra announces an exception of its task in a line of its own before passing it on. A sweep
    # unwraps this and runs the task itself.
    @functools.wraps(task)  # with how a sweep is to run it
    def quiet(cfg: DictConfig) -> Any:
        try:
            choices.note(cfg)
            own_ranges.take(cfg)
            resolved: Any = OmegaConf.to_container(cfg, resolve=True)
            record(Path(cfg.cwd) / cfg.dir, resolved, HydraConfig.get().overrides.task)
            results.append(task(cfg))
        except BaseException as error:
            errors.append(error)
            return None
        return results[-1]

    hydra.main(config_path=str(CONF), config_name=config, **BASE)(quiet)()
    if errors:
        raise errors[0]
    return results[-1] if results else None
