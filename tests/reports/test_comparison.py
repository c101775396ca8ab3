"""How often equal losses are called different, on simulated sweeps; and by hand what a comparison says."""

import numpy as np
import pytest
from scipy import stats

from ghm.reports.comparison import Arm, compare
from sweeps.replicates import Replicates, dropped

SEEDS, SWEEPS = 5, 200


def arms(values: np.ndarray, race: float) -> list[Arm]:
    """Of losses (rows) x seeds, best first, as a race leaves them."""
    alive, kept = list(range(len(values))), dict.fromkeys(range(len(values)), SEEDS)
    for seeds in range(2, SEEDS):
        for drop in dropped({one: list(values[one, :seeds]) for one in alive}, alive, race) if race else []:
            alive.remove(drop.trial)
            kept[drop.trial] = seeds
    made = [
        Arm(f"loss {one}", str(one), dict(enumerate(values[one, :count])), (one,), 1 if one in alive else SEEDS - 1)
        for one, count in kept.items()
    ]
    return sorted(made, key=lambda arm: (arm.looks > 1, -arm.mean))


def called(losses: int, better: float, race: float, settings: int = 1) -> tuple[int, int]:
    """In how many sweeps any two equal losses are called different, and the better one better than the next.

    Losses are compared by the best of their `settings`, all equal. Half of the variance is the seeds' own.
    """
    rng = np.random.default_rng(0)
    false, found = 0, 0
    for _ in range(SWEEPS):
        noise = np.sqrt(0.5) * (rng.normal(size=SEEDS) + rng.normal(size=(losses * settings, SEEDS)))
        noise[:settings] += better
        groups = [arms(noise, race)] if settings == 1 else [[arm] for arm in _best(noise, settings)]
        pairs = compare([arm for group in groups for arm in group])
        equal = [pair for pair in pairs if not better or "0" not in (pair.one.group, pair.other.group)]
        false += any(pair.different for pair in equal)
        found += any(pair.different and pair.one.group == "0" for pair in pairs)
    return false, found


def _best(noise: np.ndarray, settings: int) -> list[Arm]:
    of_losses = [arms(noise[first : first + settings], 0)[0] for first in range(0, len(noise), settings)]
    return [Arm(arm.label, str(loss), arm.values, (loss,)) for loss, arm in enumerate(of_losses)]


@pytest.mark.parametrize(
    ("losses", "race", "settings"), [(2, 0.0, 1), (2, Replicates().race, 1), (4, Replicates().race, 1), (2, 0.0, 6)]
)
def test_equal_losses_are_called_different_in_at_most_5_percent_of_sweeps(losses, race, settings):
    assert called(losses, 0.0, race, settings)[0] <= 0.05 * SWEEPS


def test_a_loss_that_is_far_better_is_called_so_unless_a_race_saved_the_seeds():
    assert called(2, 2.0, 0.0)[1] > 0.75 * SWEEPS
    assert called(2, 2.0, Replicates().race)[1] < 0.25 * SWEEPS  # as docs/sweeps.md warns


def test_a_comparison_is_paired_by_seed():
    one = Arm("a", "a", {1: 0.50, 2: 0.60, 3: 0.70, 4: 0.52})
    other = Arm("b", "b", {2: 0.57, 1: 0.48, 3: 0.66, 9: 0.0})
    [pair] = compare([one, other])
    expected = stats.ttest_rel([0.50, 0.60, 0.70], [0.48, 0.57, 0.66])
    assert (pair.seeds, pair.difference) == (3, pytest.approx(0.03))
    assert pair.chance == pytest.approx(expected.pvalue)
    assert (pair.low, pair.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    [minimized] = compare([one, other], ascending=True)
    assert minimized.difference == pytest.approx(-0.03)
    assert compare([one, Arm("c", "c", {1: 0.4})]) == []


def test_holm_corrects_over_all_pairs():
    seeds = range(5)
    made = [
        Arm(name, name, {s: mean + 0.01 * np.sin(7 * s + k) for s in seeds})
        for k, (name, mean) in enumerate([("a", 0.6), ("b", 0.59), ("c", 0.5)])
    ]
    pairs = [(0, 1), (0, 2), (1, 2)]
    raw = np.sort([compare([made[one], made[other]])[0].chance for one, other in pairs])
    corrected = np.minimum(np.maximum.accumulate(raw * [3, 2, 1]), 1)
    assert sorted(pair.chance for pair in compare(made)) == pytest.approx(list(corrected))


def test_how_many_seeds_would_tell_a_difference_of_laptop_size():
    """A spread of .023 over seeds and a difference of .02 need some 21 seeds at 5 %, a few more at `LEVEL`."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2, 6))
    noise = noise - noise.mean(1, keepdims=True)
    noise[1] -= noise[0] * (noise[0] @ noise[1]) / (noise[0] @ noise[0])
    noise *= 0.023 / noise.std(1, ddof=1, keepdims=True)
    [pair] = compare([Arm("a", "a", dict(enumerate(0.52 + noise[0]))), Arm("b", "b", dict(enumerate(0.5 + noise[1])))])
    assert not pair.different
    assert pair.effect == pytest.approx(0.02 / 0.023)
    needed = pair.seeds + pair.more
    assert 21 < needed <= 28
    sweeps = [0.023 * rng.normal(size=(2, needed)) for _ in range(SWEEPS)]
    found = [compare([Arm("a", "a", dict(enumerate(0.02 + a))), Arm("b", "b", dict(enumerate(b)))]) for a, b in sweeps]
    assert 0.7 * SWEEPS < sum(pair.different for [pair] in found) < 0.9 * SWEEPS
