"""Gradient density: counts, their average, and the weights; against loops that follow the paper's text."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses.density import GradientDensity

modest = settings(max_examples=30, deadline=None)


def norms(count=200, seed=0, dtype=torch.float64):
    """Gradient norms with the crowd near 0 and the small one near 1 that a detector shows."""
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(count, generator=generator, dtype=dtype) ** 4
    return torch.where(torch.rand(count, generator=generator) < 0.9, easy, 1 - easy)


def mask(count=200, seed=0, share=0.7):
    return torch.rand(count, generator=torch.Generator().manual_seed(1000 + seed)) < share


def everything(g):
    return torch.ones_like(g, dtype=torch.bool)


def region_of(value, bins):
    """The region [j/M, (j+1)/M) in which a norm lies; the last one is closed."""
    return next(j for j in range(bins) if value < (j + 1) / bins or j == bins - 1)


def loop_counts(g, valid, bins):
    counts = [0] * bins
    for value, counted in zip(g.tolist(), valid.tolist(), strict=True):
        counts[region_of(value, bins)] += counted
    return counts


def loop_weights(g, valid, bins, normalize):
    """beta_i = N / (R_ind(i) M), or n in M's place (Eq. 7, 9, 10), one example at a time."""
    counts = loop_counts(g, valid, bins)
    regions = sum(count > 0 for count in counts) if normalize == "occupied" else bins
    return torch.tensor(
        [
            sum(counts) / (counts[region_of(value, bins)] * regions) if counted else 0.0
            for value, counted in zip(g.tolist(), valid.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def loop_exact_weights(g, valid, bins):
    """beta_i = N l(g_i) / #{k: g_i - e/2 <= g_k < g_i + e/2}, e = 1/M (Eq. 4-7), pair by pair."""
    half, counted = 0.5 / bins, g[valid].tolist()
    weights = []
    for value, is_valid in zip(g.tolist(), valid.tolist(), strict=True):
        near = sum(value - half <= other < value + half for other in counted)
        length = min(value + half, 1.0) - max(value - half, 0.0)
        weights.append(len(counted) * length / near if is_valid else 0.0)
    return torch.tensor(weights, dtype=torch.float64)


# Weights


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("bins", [1, 2, 3, 10, 30, 100])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_a_loop_over_examples(bins, normalize, seed):
    g, valid = norms(seed=seed), mask(seed=seed)
    weights = GradientDensity(bins, momentum=0.0, normalize=normalize)(g, valid)
    torch.testing.assert_close(weights, loop_weights(g, valid, bins, normalize))


@pytest.mark.parametrize("bins", [1, 2, 10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_exact_weights_equal_a_loop_over_pairs(bins, seed):
    g, valid = norms(seed=seed), mask(seed=seed)
    weights = GradientDensity(bins, momentum=0.0, density="exact")(g, valid)
    torch.testing.assert_close(weights, loop_exact_weights(g, valid, bins))


def test_exact_window_takes_its_lower_edge_and_leaves_its_upper_one():
    # Window of width 1/2 around each; all values are exact in binary.
    g = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    weights = GradientDensity(2, momentum=0.0, density="exact")(g, everything(g))
    # 0.25 sees itself alone, 0.5 sees 0.25 too, 0.75 sees 0.5 too.
    torch.testing.assert_close(weights, 3 * 0.5 / torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))


@modest
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 60), count=st.integers(1, 80))
def test_mean_weight_is_one_when_divided_by_occupied_regions(seed, bins, count):
    g, valid = norms(count, seed), mask(count, seed)
    valid[0] = True
    weights = GradientDensity(bins, momentum=0.0)(g, valid)
    assert weights[valid].mean().item() == pytest.approx(1.0)


@modest
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 60), normalize=st.sampled_from(["occupied", "all"]))
def test_each_occupied_region_carries_the_same_mass(seed, bins, normalize):
    g, valid = norms(60, seed), mask(60, seed)
    weights = GradientDensity(bins, momentum=0.0, normalize=normalize)(g, valid)
    mass = [0.0] * bins
    for value, weight in zip(g.tolist(), weights.tolist(), strict=True):
        mass[region_of(value, bins)] += weight
    occupied = [count > 0 for count in loop_counts(g, valid, bins)]
    share = int(valid.sum()) / (sum(occupied) if normalize == "occupied" else bins)
    assert mass == pytest.approx([share * filled for filled in occupied])


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_evenly_spread_norms_weigh_one_each(normalize):
    g = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    weights = GradientDensity(30, momentum=0.0, normalize=normalize)(g, everything(g))
    torch.testing.assert_close(weights, torch.ones_like(g))


@modest
@given(seed=st.integers(0, 10**6), density=st.sampled_from(["regions", "exact"]))
def test_the_order_of_examples_does_not_matter(seed, density):
    g, valid = norms(50, seed), mask(50, seed)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    weights = GradientDensity(10, momentum=0.0, density=density)(g, valid)
    torch.testing.assert_close(GradientDensity(10, 0.0, density)(g[order], valid[order]), weights[order])


@pytest.mark.parametrize("density", ["regions", "exact"])
def test_any_shape_and_memory_layout_gives_the_same_weights(density):
    g, valid = norms(24).view(4, 6), mask(24).view(4, 6)
    flat = GradientDensity(5, 0.0, density)(g.flatten(), valid.flatten())
    torch.testing.assert_close(GradientDensity(5, 0.0, density)(g, valid), flat.view(4, 6))
    torch.testing.assert_close(GradientDensity(5, 0.0, density)(g.t(), valid.t()), flat.view(4, 6).t())


# Regions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 30, 64, 100, 257])
def test_an_edge_opens_its_region_and_one_belongs_to_the_last(bins, dtype):
    lower = torch.arange(bins, dtype=dtype) / bins
    upper = torch.arange(1, bins + 1, dtype=dtype) / bins
    density = GradientDensity(bins, momentum=0.0)
    for g in (lower, torch.nextafter(upper, torch.zeros((), dtype=dtype))):
        density(g, everything(g))
        assert density.average.tolist() == [1.0] * bins
    density(torch.ones(1, dtype=dtype), torch.tensor([True]))
    assert density.average.tolist() == [0.0] * (bins - 1) + [1.0]


def test_counts_stay_exact_beyond_what_float32_can_count():
    count = 2**24 + 1
    density = GradientDensity(2, momentum=0.0)
    density(torch.zeros(count), torch.ones((), dtype=torch.bool).expand(count))
    assert density.average.tolist() == [count, 0]


def test_ignored_examples_are_neither_counted_nor_weighted():
    g = torch.tensor([0.05, 0.05, 0.95, float("nan")], dtype=torch.float64)
    density = GradientDensity(10, momentum=0.0)
    weights = density(g, torch.tensor([True, False, True, False]))
    assert density.average.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert weights.tolist() == [1, 0, 1, 0]


# Moving average


def stream(steps=6, count=80):
    return [norms(count, seed) for seed in range(steps)]


@pytest.mark.parametrize("momentum", [0.3, 0.5, 0.75, 0.9])
def test_the_first_step_equals_one_without_average(momentum):
    g, valid = norms(), mask()
    averaged = GradientDensity(30, momentum)(g, valid)
    torch.testing.assert_close(averaged, GradientDensity(30, momentum=0.0)(g, valid), rtol=1e-6, atol=0)


@pytest.mark.parametrize("momentum", [0.9999, 0.999999, 1 - 1e-9])
def test_a_long_average_starts_unbiased_too(momentum):
    g, valid = norms(), mask()
    averaged = GradientDensity(30, momentum)(g, valid)
    torch.testing.assert_close(averaged, GradientDensity(30, momentum=0.0)(g, valid), rtol=1e-6, atol=0)


@pytest.mark.parametrize("momentum", [0.5, 0.75, 0.9])
def test_a_constant_stream_keeps_the_weights_of_its_first_step(momentum):
    g, valid = norms(), mask()
    density = GradientDensity(10, momentum)
    first = density(g, valid)
    for _ in range(20):
        torch.testing.assert_close(density(g, valid), first, rtol=1e-6, atol=0)
    counts = torch.tensor(loop_counts(g, valid, 10), dtype=torch.float64)
    torch.testing.assert_close(density.average, counts * (1 - momentum**21))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75])
def test_average_and_weights_follow_the_closed_form_of_eq_12(momentum, normalize):
    density = GradientDensity(10, momentum, normalize=normalize)
    counts = []
    for step, g in enumerate(stream(), start=1):
        weights = density(g, everything(g))
        counts.append(loop_counts(g, everything(g), 10))
        decay = [(1 - momentum) * momentum ** (step - 1 - past) for past in range(step)]
        average = [sum(d * c[j] for d, c in zip(decay, counts, strict=True)) for j in range(10)]
        assert density.average.tolist() == pytest.approx(average)
        assert density.updates.item() == step
        regions = sum(count > 0 for count in counts[-1]) if normalize == "occupied" else 10
        expected = [len(g) * (1 - momentum**step) / (average[region_of(value, 10)] * regions) for value in g.tolist()]
        assert weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_an_emptied_region_decays():
    density = GradientDensity(2, momentum=0.5)
    low, high = torch.full((8,), 0.2), torch.full((8,), 0.8)
    for g in (low, high, high, high):
        density(g, everything(g))
    assert density.average.tolist() == [8 * 0.5**4, 8 * (1 - 0.5**3)]


@pytest.mark.parametrize("density", ["regions", "exact"])
def test_evaluation_and_no_grad_leave_the_state_alone(density):
    module = GradientDensity(10, momentum=0.75, density=density, strength_warmup=3)
    module(norms(), mask())
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        module(norms(seed=1), mask())
    module.eval()
    module(norms(seed=2), mask())
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_evaluation_gives_the_weights_that_training_would_give_next():
    module = GradientDensity(10, momentum=0.75)
    for g in stream(3):
        module(g, everything(g))
    g, valid = norms(seed=9), mask()
    module.eval()
    evaluated = module(g, valid)
    module.train()
    with torch.no_grad():
        torch.testing.assert_close(module(g, valid), evaluated, rtol=0, atol=0)
    torch.testing.assert_close(module(g, valid), evaluated, rtol=0, atol=0)


@pytest.mark.parametrize(
    "density",
    [
        "regions",
        "exact",
    ],
)
@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_without_a_valid_example_leaves_the_state_alone(density, count):
    module = GradientDensity(10, momentum=0.75, density=density)
    module(norms(), mask())
    before = copy.deepcopy(module.state_dict())
    weights = module(norms(count), torch.zeros(count, dtype=torch.bool))
    assert weights.tolist() == [0.0] * count
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_batch_without_a_valid_example_may_come_first():
    module = GradientDensity(10, momentum=0.75)
    assert module(norms(3), torch.zeros(3, dtype=torch.bool)).tolist() == [0.0] * 3
    g = norms()
    torch.testing.assert_close(module(g, mask()), GradientDensity(10, momentum=0.75)(g, mask()), rtol=0, atol=0)


def test_a_saved_and_loaded_state_continues_identically():
    setup = {"bins": 10, "momentum": 0.75, "strength": 0.8, "strength_warmup": 5}
    unbroken, first = GradientDensity(**setup), GradientDensity(**setup)
    batches = stream(8)
    expected = [unbroken(g, everything(g)) for g in batches]
    for g in batches[:3]:
        first(g, everything(g))
    second = GradientDensity(**setup)
    second.load_state_dict(first.state_dict())
    for g, weights in zip(batches[3:], expected[3:], strict=True):
        assert torch.equal(second(g, everything(g)), weights)


def test_the_state_is_the_average_and_the_number_of_updates():
    # Edges would tie a checkpoint to details; both of these are needed to continue.
    assert set(GradientDensity(10, 0.5).state_dict()) == {"average", "updates"}


def test_a_module_in_half_precision_still_counts_a_whole_batch():
    module = GradientDensity(10, momentum=0.5).half()
    g = torch.full((200_000,), 0.05)
    for _ in range(3):
        weights = module(g, everything(g))
    assert weights[0].item() == pytest.approx(1.0, rel=1e-2)


# Strength


@modest
@given(
    seed=st.integers(0, 10**6),
    strength=st.floats(0, 1),
    density=st.sampled_from(["regions", "exact"]),
    momentum=st.sampled_from([0.0, 0.75]),
)
def test_strength_keeps_the_mean_weight(seed, strength, density, momentum):
    first, second = norms(50, seed), norms(50, seed + 1)
    plain = GradientDensity(10, momentum, density)
    softened = GradientDensity(10, momentum, density, strength=strength)
    for g in (first, second):
        wanted, got = plain(g, mask(50, seed)), softened(g, mask(50, seed))
    assert got.sum().item() == pytest.approx(wanted.sum().item())
    # Proportional to beta^s: the logarithms differ by s times those of beta, up to one constant.
    differences = (got.log() - strength * wanted.log())[wanted > 0]
    torch.testing.assert_close(differences, differences[:1].expand_as(differences), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("density", ["regions", "exact"])
def test_no_strength_gives_everyone_the_mean_weight(density):
    g, valid = norms(), mask()
    weights = GradientDensity(10, 0.0, density, normalize="all", strength=0.0)(g, valid)
    mean = GradientDensity(10, 0.0, density, normalize="all")(g, valid)[valid].mean()
    torch.testing.assert_close(weights, mean * valid)


@pytest.mark.parametrize(
    "density",
    [
        "regions",
        "exact",
    ],
)
@pytest.mark.parametrize("warmup", [1, 4])
def test_strength_rises_linearly_from_nothing_over_the_warm_up(density, warmup):
    module = GradientDensity(10, 0.0, density, strength=0.8, strength_warmup=warmup)
    for step, g in enumerate(stream(warmup + 3)):
        expected = GradientDensity(10, 0.0, density, strength=0.8 * min(step / warmup, 1.0))(g, everything(g))
        torch.testing.assert_close(module(g, everything(g)), expected)


def test_evaluation_takes_the_strength_that_the_next_training_step_would_have():
    module = GradientDensity(10, 0.0, strength_warmup=4)
    for g in stream(2):
        module(g, everything(g))
    g = norms(seed=7)
    expected = GradientDensity(10, 0.0, strength=0.5)(g, everything(g))
    module.eval()
    torch.testing.assert_close(module(g, everything(g)), expected)


def test_no_grad_in_training_takes_the_strength_of_the_next_step():
    module = GradientDensity(10, 0.0, strength_warmup=4)
    for g in stream(2):
        module(g, everything(g))
    g = norms(seed=7)
    with torch.no_grad():
        looked_at = module(g, everything(g))
    torch.testing.assert_close(looked_at, module(g, everything(g)))


# Bad settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", 0),
        ("bins", -3),
        ("bins", 2.5),
        ("bins", "30"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("density", "kernel"),
        ("normalize", "some"),
        ("strength", -0.1),
        ("strength", 1.5),
        ("strength", math.nan),
        ("strength_warmup", -1),
    ],
)
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GradientDensity(**{"bins": 10, "momentum": 0.5, name: value})
