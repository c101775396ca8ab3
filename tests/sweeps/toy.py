"""A loader for Hydra's grammar, and sweeps that are there without having been run."""

from pathlib import Path

import optuna
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from ghm.settings.paths import CONF
from ghm.tracking import Spool
from sweeps import studies
from sweeps.draw import Search
from sweeps.grammar import parse
from sweeps.ledger import Ledger
from sweeps.states import State
from sweeps.storage import open_storage

LOADER = ConfigLoaderImpl(create_config_search_path(str(CONF)))


def with_failures(name: str, count: int) -> None:
    """A sweep below `runs` of so many trials, of which the first is done and all others failed."""
    folder, storage = Path("runs/sweeps") / name, open_storage(None, Path("runs"))
    space = parse([f"seed=range(0,{count})"], {}, {}, LOADER)
    search = Search(space, lambda number, again: optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    ledger = Ledger(studies.create(storage, name, ["maximize"], folder))
    for number in range(count):
        ledger.queue(search.draw(ledger, count))
        ledger.start(number)
        Spool(folder / f"{number:04d}").start("run", {})
        state, value = (State.FAILED, ()) if number else (State.DONE, (0.5,))
        ledger.end(number, state, value, error="the disk is full" if number else "", spent=bool(number))
        Spool(folder / f"{number:04d}").finish(state)
