"""Several seeds of a trial: their race, measured on simulated sweeps, and the engine that runs it."""

import numpy as np
import pytest

from sweeps.replicates import Replicates, dropped

SEEDS = 5


def race(losses: np.ndarray, level: float) -> tuple[int, list[int]]:
    """How many seeds are run of losses (rows) x seeds, one seed of each at a time, and which losses ran all."""
    alive, begun = list(range(len(losses))), dict.fromkeys(range(len(losses)), 0)
    for seed in range(losses.shape[1]):
        begun |= dict.fromkeys(alive, seed + 1)
        values = {one: list(losses[one, : seed + 1]) for one in alive}
        if seed + 1 < losses.shape[1]:
            out = {drop.trial for drop in dropped(values, alive, level)}
            alive = [one for one in alive if one not in out]
    return sum(begun.values()), alive


def simulated(count: int, better: float, shared: float, rng: np.random.Generator) -> np.ndarray:
    """Losses x seeds, in standard deviations of one seed, of which `shared` is common to all; loss 0 is better."""
    noise = np.sqrt(shared) * rng.normal(size=SEEDS) + np.sqrt(1 - shared) * rng.normal(size=(count, SEEDS))
    noise[0] += better
    return noise


@pytest.mark.parametrize(("count", "shared", "most"), [(3, 0.5, 0.70), (6, 0.5, 0.63), (10, 0.0, 0.63)])
def test_a_race_needs_30_percent_fewer_seeds_where_one_is_a_standard_deviation_better(count, shared, most):
    rng = np.random.default_rng(0)
    runs, kept = 0, 0
    for _ in range(200):
        used, alive = race(simulated(count, 1.0, shared, rng), Replicates().race)
        runs, kept = runs + used, kept + (0 in alive)
    assert runs <= most * 200 * count * SEEDS
    assert kept >= 0.75 * 200


def test_what_is_far_behind_runs_twice_and_what_is_best_always_to_the_end():
    rng = np.random.default_rng(1)
    for _ in range(50):
        used, alive = race(simulated(4, 20.0, 0.5, rng), Replicates().race)
        assert (used, alive) == (SEEDS + 3 * 2, [0])
    assert race(simulated(4, 20.0, 0.5, rng), 0.0)[0] == 4 * SEEDS


def test_two_configurations_that_always_come_to_the_same_are_never_dropped():
    assert dropped({0: [0.5, 0.5], 1: [0.5, 0.5]}, [0, 1], 0.2) == []
    [drop] = dropped({0: [0.5, 0.5], 1: [0.4, 0.4]}, [0, 1], 0.2)
    assert str(drop) == "out of the race: 0.1 behind trial 0 over 2 seeds"
    assert dropped({0: [0.5], 1: [0.1]}, [0, 1], 0.2) == []  # one seed each says nothing of the spread


def test_the_value_of_a_trial_of_its_runs():
    runs = [(0.1, 5.0), (0.2, 9.0), (0.6, 1.0)]
    ways = ("maximize", "minimize")
    assert Replicates(3).value(runs, ways) == pytest.approx((0.3, 5.0))
    assert Replicates(3, by="median").value(runs, ways) == (0.2, 5.0)
    # 4.303 of Student's t with 2 degrees of freedom, times 0.2646 and 4 of spread, by the root of 3
    assert Replicates(3, by="lower").value(runs, ways) == pytest.approx((0.3 - 0.6572, 5.0 + 9.937), rel=1e-3)
    assert Replicates(3, by="lower").value(runs[:1], ways) == (0.1, 5.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"count": 0}, "hydra.sweeper.replicates=0: must be a whole number"),
        ({"count": True}, "hydra.sweeper.replicates=True"),
        ({"by": "best"}, "hydra.sweeper.aggregate=best: must be one of mean, median, lower"),
        ({"race": 0.9}, "hydra.sweeper.race=0.9: must be a number from 0"),
        ({"first": -1}, "seed=-1: must be a whole number"),
    ],
)
def test_settings_that_make_no_replicates_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Replicates(**settings)
