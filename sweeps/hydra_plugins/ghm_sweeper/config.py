"""Makes `hydra/sweeper=ghm`, its samplers and its pruners known to every Hydra program that has this installed.

As other plugins of Hydra do, and by the same names: where one of them brings a sampler of that name, its own counts.
"""

from contextlib import suppress
from importlib import import_module
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

FOLDER = Path(__file__).parent / "conf"


def _register() -> None:
    with suppress(ImportError):  # else it would find its names taken
        import_module("hydra_plugins.hydra_optuna_sweeper.config")
    store = ConfigStore.instance()
    for path in sorted(FOLDER.rglob("*.yaml")):
        group = Path("hydra/sweeper", path.parent.relative_to(FOLDER)).as_posix()
        try:
            known = path.name in store.list(group)
        except OSError:  # the first of its group
            known = False
        if not known:
            store.store(name=path.stem, node=OmegaConf.load(path), group=group, provider="ghm")


_register()
