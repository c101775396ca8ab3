"""Every sampler that is offered: what it draws depends on the seed and on what came of earlier trials alone."""

import random
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from ghm.paths import CONF
from sweeps import ledger as ledgers
from sweeps.draw import Search
from sweeps.ledger import Ledger
from sweeps.space import parse
from sweeps.states import State
from sweeps.storage import open_storage
from tests.sweeps.toy import LOADER

SAMPLERS = sorted(path.stem for path in (CONF / "hydra/sweeper/sampler").glob("*.yaml"))
TRIALS = 14  # past the random ones with which TPE and Gaussian processes begin


def search(name, seed):
    from optuna.pruners import NopPruner

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"hydra/sweeper/sampler={name}"], return_hydra_config=True)

    def make(number, again):
        return instantiate(cfg.hydra.sweeper.sampler, seed=random.Random(hash((seed, number)) + again).getrandbits(32))

    return Search(parse(["x=interval(0.0,1.0)", "y=interval(0.0,1.0)"], {}, {}, LOADER), make, NopPruner(), [])


def drawn(folder, name, seed, killed=False, trials=TRIALS):
    """The points of a sweep of one slot; `killed`: its controller is replaced after every trial."""
    folder.mkdir()
    storage, searched = open_storage(f"sqlite:///{folder}/optuna.db", folder), search(name, seed)
    study = ledgers.create(storage, "s", "maximize", folder)
    ledger = Ledger(study, searched.pruner)
    for number in range(trials):
        if killed:
            ledger = Ledger(ledgers.find(storage, "s"), searched.pruner)
        trial = ledger.queue(searched.draw(ledger, trials))
        ledger.start(number)
        x, y = trial.params["x"], trial.params["y"]
        ledger.end(number, State.DONE, 1 - (x - 0.3) ** 2 - (y - 0.8) ** 2)
    return [trial.params for trial in ledger.trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sweep_that_is_killed_after_every_trial_draws_what_it_would_have_drawn(name, tmp_path: Path):
    whole = drawn(tmp_path / "whole", name, 1)
    assert drawn(tmp_path / "killed", name, 1, killed=True) == whole
    assert len({tuple(point.values()) for point in whole}) == TRIALS
    assert drawn(tmp_path / "other", name, 2)[0] != whole[0]


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"random"}))
def test_a_sampler_that_learns_comes_nearer_to_the_best(name, tmp_path: Path):
    def missed(point):
        return (point["x"] - 0.3) ** 2 + (point["y"] - 0.8) ** 2

    missed_by = [missed(point) for point in drawn(tmp_path / "whole", name, 1, trials=30)]
    assert sum(missed_by[-10:]) < 0.7 * sum(missed_by[:10])  # the first ten are random
