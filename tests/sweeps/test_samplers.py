"""Every sampler that is offered: what it draws depends on the seed and on what came of earlier trials alone."""

import json
import pickle
import random
from pathlib import Path

import hydra
import pytest
from hydra_plugins.ghm_sweeper.config import FOLDER
from hydra_plugins.ghm_sweeper.sweeper import REPEATABLE
from scipy.stats.qmc import discrepancy
from sqlalchemy import text

from ghm.settings import targets
from ghm.settings.paths import CONF
from sweeps import studies
from sweeps.draw import Search
from sweeps.grammar import parse
from sweeps.ledger import Ledger
from sweeps.states import State
from sweeps.storage import open_storage
from tests.sweeps.toy import LOADER

FINITE = ("bruteforce", "grid")
SAMPLERS = sorted({path.stem for path in (FOLDER / "sampler").glob("*.yaml")} - set(FINITE))
CONTINUOUS = ("x=interval(0.0,1.0)", "y=interval(0.0,1.0)")
TRIALS = 14  # past the random ones with which TPE and Gaussian processes begin


def search(name, seed, space=CONTINUOUS):
    from optuna.pruners import NopPruner

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"hydra/sweeper/sampler={name}"], return_hydra_config=True)

    def make(number, again):
        return targets.call(cfg.hydra.sweeper.sampler, seed=random.Random(hash((seed, number)) + again).getrandbits(32))

    lasting = None if type(make(0, 0)).__name__ in REPEATABLE else make(0, 0)
    return Search(parse(list(space), {}, {}, LOADER), make, NopPruner(), [], lasting)


def drawn(folder, name, seed, killed=False, trials=TRIALS, space=CONTINUOUS):
    """The points of a sweep of one slot; `killed`: its controller is replaced after every trial."""
    folder.mkdir()
    storage = open_storage(f"sqlite:///{folder}/optuna.db", folder)
    study = studies.create(storage, "s", ["maximize"], folder)
    for number in range(trials):
        if killed or number == 0:
            searched = search(name, seed, space)
            again = None if searched.lasting is None else lambda ledger, own=searched: own.draw(ledger, trials)
            ledger = Ledger(study if number == 0 else studies.find(storage, "s"), searched.pruner, again)
        trial = ledger.queue(searched.draw(ledger, trials))
        ledger.start(number)
        x, y = trial.params["x"], trial.params["y"]
        ledger.end(number, State.DONE, (1 - (x - 0.3) ** 2 - (y - 0.8) ** 2,))
    return [trial.params for trial in ledger.trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sweep_that_is_killed_after_every_trial_draws_what_it_would_have_drawn(name, tmp_path: Path):
    whole = drawn(tmp_path / "whole", name, 1)
    assert drawn(tmp_path / "killed", name, 1, killed=True) == whole
    assert len({tuple(point.values()) for point in whole}) == TRIALS
    assert drawn(tmp_path / "other", name, 2)[0] != whole[0]


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"random", "qmc"}))
def test_a_sampler_that_learns_comes_nearer_to_the_best(name, tmp_path: Path):
    def missed(point):
        return (point["x"] - 0.3) ** 2 + (point["y"] - 0.8) ** 2

    missed_by = [missed(point) for point in drawn(tmp_path / "whole", name, 1, trials=60)]
    assert sum(missed_by[-10:]) < 0.7 * sum(missed_by[:10])  # the first ten are random, or nearly


@pytest.mark.parametrize("name", FINITE)
@pytest.mark.parametrize("killed", [False, True])
def test_a_finite_space_is_gone_through_point_by_point(name, killed, tmp_path: Path):
    finite = ("x=choice(0.0,0.5,1.0)", "y=choice(0.0,0.25,0.5,0.75,1.0)")
    points = drawn(tmp_path / "whole", name, 1, killed, trials=TRIALS, space=finite)  # one fewer than there are
    assert len({tuple(point.values()) for point in points}) == TRIALS


def test_a_quasi_random_sequence_covers_the_space_more_evenly_than_random_points(tmp_path: Path):
    def uneven(name):
        return discrepancy([tuple(point.values()) for point in drawn(tmp_path / name, name, 1, trials=32)])

    assert uneven("qmc") < 0.5 * uneven("random")


class Code:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_what_a_sampler_pickled_is_not_read_from_the_storage(tmp_path: Path):
    """CMA-ES would unpickle its state from a study that anybody may have written."""
    points = drawn(tmp_path / "sweep", "cmaes", 1, trials=8)
    storage = open_storage(f"sqlite:///{tmp_path}/sweep/optuna.db", tmp_path)
    study = studies.find(storage, "s")
    assert not [key for trial in study.trials for key in trial.system_attrs if key.startswith("cma:")]
    with storage.engine.begin() as connection:
        said = {"code": json.dumps(pickle.dumps(Code()).hex())}
        adds = (
            "INSERT INTO trial_system_attributes (trial_id, key, value_json) SELECT trial_id, :key, :code FROM trials"
        )
        for key in ("cma:optimizer:0", "cma:relative_optimizer:0"):
            connection.execute(text(adds), said | {"key": key})
    searched = search("cmaes", 1)
    ledger = Ledger(studies.find(storage, "s"), searched.pruner, lambda own: searched.draw(own, 20))
    assert [trial.params for trial in ledger.trials] == points
    assert searched.draw(ledger, 20) is not None
    assert not Path("ran").exists()
