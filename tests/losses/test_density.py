"""Weights from gradient density, against loops that follow the paper's text."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses.density import GradientDensity

modest = settings(max_examples=30, deadline=None)


@pytest.fixture(params=["regions", "sorted", "grid"])
def way(request, monkeypatch):
    """Every value of `density`, the exact one both by sorting and on the grid that many examples take."""
    if request.param == "grid":
        monkeypatch.setattr("ghm.losses.density.SORTED_UP_TO", -1)
    return "regions" if request.param == "regions" else "exact"


def norms(count=200, seed=0, dtype=torch.float64):
    """Gradient norms with the crowd near 0 and the small one near 1 that a detector shows."""
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(count, generator=generator, dtype=dtype) ** 4
    return torch.where(torch.rand(count, generator=generator) < 0.9, easy, 1 - easy)


def mask(count=200, seed=0, share=0.3):
    """Which examples are ignored."""
    return torch.rand(count, generator=torch.Generator().manual_seed(1000 + seed)) < share


def stream(steps=6, count=80):
    return [norms(count, seed) for seed in range(steps)]


def region_of(value, bins):
    """The region [j/M, (j+1)/M) in which a norm lies; the last one is closed."""
    return next(j for j in range(bins) if value < (j + 1) / bins or j == bins - 1)


def loop_counts(g, ignored, bins):
    counts = [0] * bins
    for value, left_out in zip(g.tolist(), ignored.tolist(), strict=True):
        counts[region_of(value, bins)] += not left_out
    return counts


def loop_weights(g, ignored, bins, normalize):
    """beta_i / N = 1 / (R_ind(i) M), or n in M's place (Eq. 9, 10), one example at a time."""
    counts = loop_counts(g, ignored, bins)
    regions = sum(count > 0 for count in counts) if normalize == "occupied" else bins
    return torch.tensor(
        [
            0.0 if left_out else 1 / (counts[region_of(value, bins)] * regions)
            for value, left_out in zip(g.tolist(), ignored.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def loop_exact_weights(g, ignored, bins):
    """beta_i / N = l(g_i) / #{k: g_i - e/2 <= g_k < g_i + e/2}, e = 1/M (Eq. 4-7), pair by pair."""
    half, counted = 0.5 / bins, g[~ignored].tolist()
    weights = []
    for value, left_out in zip(g.tolist(), ignored.tolist(), strict=True):
        near = sum(value - half <= other < value + half for other in counted)
        length = min(value + half, 1.0) - max(value - half, 0.0)
        weights.append(0.0 if left_out else length / near)
    return torch.tensor(weights, dtype=torch.float64)


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(before, module):
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in after)


# Weights


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("bins", [1, 2, 3, 10, 30, 100])
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_eq_9_and_10_example_by_example(bins, normalize, seed):
    g, ignored = norms(seed=seed), mask(seed=seed)
    sign = torch.tensor([1.0, -1.0]).repeat(100)
    weights = GradientDensity(bins, momentum=0.0, normalize=normalize)(g * sign, ignored)
    torch.testing.assert_close(weights, loop_weights(g, ignored, bins, normalize))


@pytest.mark.parametrize("bins", [1, 2, 10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_exact_weights_are_eq_4_to_7_pair_by_pair(bins, seed):
    g, ignored = norms(seed=seed), mask(seed=seed)
    sign = torch.tensor([1.0, -1.0]).repeat(100)
    weights = GradientDensity(bins, momentum=0.0, density="exact")(g * sign, ignored)
    torch.testing.assert_close(weights, loop_exact_weights(g, ignored, bins))


@pytest.mark.parametrize("bins", [1, 2, 8, 32])
def test_exact_weights_on_the_grid_are_eq_4_to_7_pair_by_pair(bins, monkeypatch):
    monkeypatch.setattr("ghm.losses.density.SORTED_UP_TO", -1)
    g, ignored = (norms() * 2**20).round() / 2**20, mask()
    g[:2] = torch.tensor([0.0, 1.0])
    weights = GradientDensity(bins, momentum=0.0, density="exact")(g, ignored)
    torch.testing.assert_close(weights, loop_exact_weights(g, ignored, bins))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_sorting_and_the_grid_agree(strength, monkeypatch):
    g, ignored = norms(20_000), mask(20_000)
    density = GradientDensity(30, 0.0, "exact", strength=strength)
    by_sorting = density(g, ignored)
    monkeypatch.setattr("ghm.losses.density.SORTED_UP_TO", 0)
    on_grid = density(g, ignored)
    assert not torch.equal(on_grid, by_sorting)
    torch.testing.assert_close(on_grid, by_sorting, rtol=0.02, atol=0)
    assert ((on_grid - by_sorting).abs() / by_sorting)[~ignored].mean() < 1e-3


def test_the_exact_density_has_neither_average_nor_normalization():
    """Eq. 7 holds whatever the settings of Eq. 12 and of n or M say."""
    plain = GradientDensity(10, 0.0, "exact")
    other = GradientDensity(10, 0.9, "exact", normalize="all", bias_correction=False, emptied="stay")
    for g in stream(4):
        assert torch.equal(other(g), plain(g))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_unit_regions_come_nearer_to_the_exact_density_the_more_they_are(normalize):
    """Eq. 9 approximates Eq. 4: twice the regions, half the difference, as long as each holds many examples."""
    # The quantiles of a density that rises from 1/2 to 3/2: u = g / 2 + g^2 / 2.
    u = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    g = (torch.sqrt(1 + 8 * u) - 1) / 2
    differences = []
    for bins in (2, 4, 8, 16, 32):
        regions = GradientDensity(bins, 0.0, normalize=normalize)(g)
        differences.append((regions / GradientDensity(bins, 0.0, "exact")(g)).log().abs().mean().item())
    assert all(0.4 < finer / coarser < 0.6 for coarser, finer in pairwise(differences))
    assert differences[-1] < 0.01


@modest
@given(
    seed=st.integers(0, 10**6),
    bins=st.integers(1, 60),
    count=st.integers(1, 80),
    normalize=st.sampled_from(["occupied", "all"]),
)
def test_the_mean_of_beta_is_one_or_the_share_of_regions_that_are_occupied(seed, bins, count, normalize):
    g, ignored = norms(count, seed), mask(count, seed)
    ignored[0] = False
    weights = GradientDensity(bins, momentum=0.0, normalize=normalize)(g, ignored)
    occupied = sum(number > 0 for number in loop_counts(g, ignored, bins))
    assert weights.sum().item() == pytest.approx(1.0 if normalize == "occupied" else occupied / bins)


@modest
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 60), normalize=st.sampled_from(["occupied", "all"]))
def test_each_occupied_region_carries_the_same_mass(seed, bins, normalize):
    """N/n of beta, or N/M, so 1/n or 1/M of beta/N (Eq. 10)."""
    g, ignored = norms(60, seed), mask(60, seed)
    weights = GradientDensity(bins, momentum=0.0, normalize=normalize)(g, ignored)
    mass = [0.0] * bins
    for value, weight in zip(g.tolist(), weights.tolist(), strict=True):
        mass[region_of(value, bins)] += weight
    occupied = [count > 0 for count in loop_counts(g, ignored, bins)]
    share = 1 / (sum(occupied) if normalize == "occupied" else bins)
    assert mass == pytest.approx([share * filled for filled in occupied])


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_evenly_spread_norms_weigh_the_same(normalize):
    """As below Eq. 7: beta = 1 for every example."""
    g = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    weights = GradientDensity(30, momentum=0.0, normalize=normalize)(g)
    torch.testing.assert_close(weights, torch.full_like(g, 1 / 300))


def test_evenly_spread_norms_weigh_the_same_with_the_exact_density(way):
    g = (torch.arange(2048, dtype=torch.float64) + 0.5) / 2048
    weights = GradientDensity(16, momentum=0.0, density=way)(g)
    torch.testing.assert_close(weights, torch.full_like(g, 1 / 2048), rtol=0.02, atol=0)


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_one_region_gives_everyone_the_same_weight(normalize):
    """The special case below Eq. 10, epsilon = 1."""
    g, ignored = norms(), mask()
    weights = GradientDensity(1, momentum=0.0, normalize=normalize)(g, ignored)
    torch.testing.assert_close(weights, (~ignored).double() / (~ignored).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_examples_does_not_matter(way, seed):
    g, ignored = norms(50, seed), mask(50, seed)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
    weights = GradientDensity(10, momentum=0.0, density=way)(g, ignored)
    torch.testing.assert_close(GradientDensity(10, 0.0, way)(g[order], ignored[order]), weights[order])


@pytest.mark.parametrize("times", [2, 5])
def test_a_batch_given_several_times_keeps_its_beta(way, times):
    g, ignored = norms(), mask()
    weights = GradientDensity(10, momentum=0.0, density=way)(g, ignored)
    repeated = GradientDensity(10, momentum=0.0, density=way)(g.repeat(times), ignored.repeat(times))
    torch.testing.assert_close(repeated * times, weights.repeat(times))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_one_more_easy_example_changes_little(normalize):
    """It takes its share from the examples of its own region only, of which there were R."""
    g = norms().sort().values
    easy = g < 0.1
    weights = GradientDensity(10, momentum=0.0, normalize=normalize)(g)
    more = GradientDensity(10, momentum=0.0, normalize=normalize)(torch.cat([g, g[:1]]))[:-1]
    torch.testing.assert_close(more[~easy], weights[~easy])
    torch.testing.assert_close(more[easy], weights[easy] * (easy.sum() / (easy.sum() + 1.0)).double())


def test_any_shape_and_memory_layout_gives_the_same_weights(way):
    g, ignored = norms(120).view(2, 3, 4, 5), mask(120).view(2, 3, 4, 5)
    flat = GradientDensity(5, 0.0, way)(g.flatten(), ignored.flatten()).view(g.shape)
    last = torch.channels_last
    for values, left_out in (
        (g, ignored),
        (g.to(memory_format=last), ignored),
        (g.to(memory_format=last), ignored.to(memory_format=last)),
        (torch.stack([g, -g], dim=-1)[..., 0], ignored),
    ):
        torch.testing.assert_close(GradientDensity(5, 0.0, way)(values, left_out), flat)
    turned = GradientDensity(5, 0.0, way)(g.transpose(0, 3), ignored.transpose(0, 3))
    torch.testing.assert_close(turned, flat.transpose(0, 3))
    rows = ignored[:, :1].expand_as(g)
    torch.testing.assert_close(GradientDensity(5, 0.0, way)(g, rows), GradientDensity(5, 0.0, way)(g, rows.clone()))


def test_weights_are_constants_and_the_norms_stay_as_they_are(way):
    g = norms().requires_grad_()
    before = g.detach().clone()
    assert not GradientDensity(10, 0.5, way, strength=0.5)(g, mask()).requires_grad
    assert torch.equal(g.detach(), before)


def test_one_process_counts_the_same_alone_and_in_the_world(way):
    world, local = (GradientDensity(10, 0.5, way, counts=counts) for counts in ("world", "local"))
    assert world.ranks == local.ranks == 1
    assert torch.equal(world(norms(), mask()), local(norms(), mask()))


# Which examples count


def test_a_norm_of_one_belongs_to_the_last_region():
    density = GradientDensity(10, momentum=0.0)
    weights = density(torch.tensor([1.0, -1.0, 0.95, 0.0, 0.1], dtype=torch.float64))
    assert density.average.counts.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert weights.tolist() == pytest.approx([1 / 9] * 3 + [1 / 3] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 3, 10, 30, 49, 98, 100, 257])
def test_edges_are_weighed_by_the_region_in_which_they_are_counted(bins, dtype):
    """ind(g) is the same where R_j is counted and where GD is read (Eq. 9); neighbours differ in R_j."""
    region = torch.arange(bins + 1).clamp(max=bins - 1)
    edges = (torch.arange(bins + 1, dtype=torch.float64) / bins).to(dtype)
    others = torch.arange(bins).repeat_interleave(1 + torch.arange(bins) % 3)
    g = torch.cat([edges, ((others + 0.5) / bins).to(dtype)])
    counts = torch.bincount(torch.cat([region, others]))
    density = GradientDensity(bins, momentum=0.0)
    weights = density(g)
    assert density.average.counts.tolist() == counts.tolist()
    wanted = 1 / (bins * counts[torch.cat([region, others])].double())
    torch.testing.assert_close(weights, wanted.to(dtype))


def test_ignored_examples_are_neither_counted_nor_weighted(way):
    g = torch.tensor([0.05, 0.05, 0.95, 0.95, 0.5, math.nan, math.inf], dtype=torch.float64)
    ignored = torch.tensor([False, True, False, False, True, True, True])
    density = GradientDensity(10, momentum=0.5, density=way)
    weights = density(g, ignored)
    alone = GradientDensity(10, momentum=0.5, density=way)(g[~ignored])
    assert torch.equal(weights[~ignored], alone)
    assert weights[ignored].tolist() == [0.0] * 4
    assert density.average.counts.tolist() == ([0.5, *[0] * 8, 1] if way == "regions" else [1.5])


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0])
def test_what_is_not_a_norm_has_no_weight_and_leaves_the_state_whole(way, value):
    spoiled, clean = (GradientDensity(10, 0.5, way, strength=0.7) for _ in range(2))
    for seed in range(3):
        g = norms(seed=seed)
        weights = spoiled(torch.cat([torch.tensor([value, -value]), g]))
        assert weights[:2].tolist() == [0, 0]
        torch.testing.assert_close(weights[2:], clean(g))
    assert same(state_of(clean), spoiled)


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_batch_without_an_example_leaves_the_state_alone(way, count, strength):
    module = GradientDensity(10, 0.75, way, strength=strength, strength_warmup=3)
    nobody = torch.ones(count, dtype=torch.bool)
    assert module(norms(count), nobody).tolist() == [0.0] * count
    first = module(norms(), mask())
    torch.testing.assert_close(first, GradientDensity(10, 0.75, way, strength=0.0)(norms(), mask()))
    before = state_of(module)
    assert module(norms(count), nobody).tolist() == [0.0] * count
    assert same(before, module)


@pytest.mark.parametrize(
    ("dtype", "finer"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)],
)
def test_norms_of_less_precision_get_the_weights_of_the_same_norms_in_more(way, dtype, finer):
    # Edges of 8 regions are the same in every type.
    g, ignored = norms(2000).to(dtype), mask(2000)
    weights = GradientDensity(8, 0.0, way, strength=0.9)(g, ignored)
    assert weights.dtype == torch.float32
    wanted = GradientDensity(8, 0.0, way, strength=0.9)(g.to(finer), ignored)
    torch.testing.assert_close(weights, wanted.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_more_half_precision_norms_are_weighed_than_their_type_can_count(way, dtype):
    weights = GradientDensity(10, 0.0, way, strength=0.9)(torch.full((200_000,), 0.25, dtype=dtype))
    # All in one region, or in one window of a tenth.
    beta = 0.1 if way == "exact" else 1.0
    assert weights[0].item() * 200_000 == pytest.approx(beta, rel=1e-5)


def test_a_module_in_half_precision_still_counts_a_whole_batch():
    module = GradientDensity(10, momentum=0.5).half()
    for _ in range(3):
        weights = module(torch.full((200_000,), 0.05))
    assert weights[0].item() * 200_000 == pytest.approx(1.0, rel=1e-6)


def test_counts_stay_exact_beyond_what_float32_can_count():
    density = GradientDensity(2, momentum=0.0)
    weights = density(torch.zeros(()).expand(2**24 + 1))
    assert density.average.counts.tolist() == [2**24 + 1, 0]
    assert weights[-1].item() == pytest.approx(1 / (2**24 + 1), rel=1e-6)


# Moving average


@pytest.mark.parametrize("momentum", [0.3, 0.75, 0.9, 0.9999, 0.999999, 1 - 1e-9])
def test_the_first_step_equals_one_without_average(momentum):
    g, ignored = norms(), mask()
    averaged = GradientDensity(30, momentum)(g, ignored)
    torch.testing.assert_close(averaged, GradientDensity(30, momentum=0.0)(g, ignored), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("momentum", "times"), [(0.5, 2), (0.75, 4), (0.9, 10)])
def test_without_bias_correction_the_first_weights_are_too_large(momentum, times):
    """1 / (1 - alpha) times: S starts from 0 (Eq. 12)."""
    g, ignored = norms(), mask()
    averaged = GradientDensity(30, momentum, bias_correction=False)(g, ignored)
    torch.testing.assert_close(averaged, times * GradientDensity(30, momentum=0.0)(g, ignored))


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75])
def test_weights_follow_the_closed_form_of_eq_12_and_13(momentum, normalize, bias_correction):
    density = GradientDensity(10, momentum, normalize=normalize, bias_correction=bias_correction)
    counts = []
    for step, g in enumerate(stream(), start=1):
        weights = density(g)
        counts.append(loop_counts(g, torch.zeros_like(g), 10))
        decay = [(1 - momentum) * momentum ** (step - 1 - past) for past in range(step)]
        average = [sum(d * c[j] for d, c in zip(decay, counts, strict=True)) for j in range(10)]
        assert density.average.counts.tolist() == pytest.approx(average)
        assert density.average.updates.item() == step
        regions = sum(count > 0 for count in counts[-1]) if normalize == "occupied" else 10
        age = 1 - momentum**step if bias_correction else 1.0
        expected = [age / (average[region_of(value, 10)] * regions) for value in g.tolist()]
        assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_a_constant_stream_keeps_the_weights_of_its_first_step(normalize):
    g, ignored = norms(), mask()
    density = GradientDensity(10, 0.75, normalize=normalize)
    first = density(g, ignored)
    for _ in range(20):
        torch.testing.assert_close(density(g, ignored), first)


def test_micro_batches_of_a_step_are_weighed_by_what_was_counted_so_far():
    """beta = N / (S n) where S (Eq. 12) takes the step's counts so far, times k / calls, for the whole step's."""
    density, k, momentum = GradientDensity(10, 0.75, accumulation=3), 3, 0.75
    average = [0.0] * 10
    for step in range(1, 4):
        so_far = [0] * 10
        for call in range(1, k + 1):
            g, ignored = norms(50, 10 * step + call), mask(50, 10 * step + call)
            weights = density(g, ignored)
            counts = loop_counts(g, ignored, 10)
            so_far = [a + b for a, b in zip(so_far, counts, strict=True)]
            whole = [count * k / call for count in so_far]
            moved = [momentum * a + (1 - momentum) * b for a, b in zip(average, whole, strict=True)]
            n = sum(count > 0 for count in so_far)
            for value, left_out, weight in zip(g.tolist(), ignored.tolist(), weights.tolist(), strict=True):
                beta = sum(whole) * (1 - momentum**step) / (moved[region_of(value, 10)] * n)
                assert weight == pytest.approx(0 if left_out else beta / sum(counts))
        average = moved
    assert density.average.counts.tolist() == pytest.approx(average)


def test_the_last_micro_batch_has_the_beta_of_one_big_batch():
    small, big = GradientDensity(10, 0.75, accumulation=4), GradientDensity(10, 0.75)
    for step in range(3):
        parts = [norms(50, 10 * step + part) for part in range(4)]
        together = big(torch.cat(parts)) * 200
        weights = [small(part) * 50 for part in parts]
        torch.testing.assert_close(weights[-1], together[-50:])
        assert torch.equal(small.average.counts, big.average.counts)


def test_evaluation_and_no_grad_leave_the_state_alone(way):
    for accumulation in (1, 2):
        module = GradientDensity(10, momentum=0.75, density=way, strength_warmup=3, accumulation=accumulation)
        for seed in range(3):
            module(norms(seed=seed), mask())
        before = state_of(module)
        with torch.no_grad():
            module(norms(seed=1), mask())
        module.eval()
        module(norms(seed=2), mask())
        with torch.no_grad():
            module(norms(seed=3), mask())
        assert same(before, module)


def test_evaluation_and_no_grad_give_the_weights_that_training_would_give_next(way):
    module = GradientDensity(10, momentum=0.75, density=way, strength=0.8, strength_warmup=6)
    for g in stream(3):
        module(g)
    g, ignored = norms(seed=9), mask()
    module.eval()
    evaluated = module(g, ignored)
    module.train()
    with torch.no_grad():
        assert torch.equal(module(g, ignored), evaluated)
    assert torch.equal(module(g, ignored), evaluated)


# Strength


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.0])
def test_strength_keeps_the_mean_weight(way, strength, momentum):
    plain = GradientDensity(10, momentum, way)
    softened = GradientDensity(10, momentum, way, strength=strength)
    for seed in range(3):
        g, ignored = norms(100, seed), mask(100, seed)
        wanted, got = plain(g, ignored), softened(g, ignored)
        assert got.sum().item() == pytest.approx(wanted.sum().item())
        # Proportional to beta^s: the logarithms differ by s times those of beta, up to one constant.
        differences = (got.log() - strength * wanted.log())[~ignored]
        torch.testing.assert_close(differences, differences[:1].expand_as(differences), rtol=1e-9, atol=1e-9)


def test_no_strength_gives_everyone_the_mean_weight(way):
    g, ignored = norms(), mask()
    weights = GradientDensity(10, 0.0, way, normalize="all", strength=0.0)(g, ignored)
    mean = GradientDensity(10, 0.0, way, normalize="all")(g, ignored)[~ignored].mean()
    torch.testing.assert_close(weights, mean * ~ignored)


@pytest.mark.parametrize("warmup", [1, 4])
def test_strength_rises_linearly_from_nothing_over_the_warm_up(way, warmup):
    module = GradientDensity(10, 0.0, way, strength=0.8, strength_warmup=warmup)
    for step, g in enumerate(stream(warmup + 3)):
        expected = GradientDensity(10, 0.0, way, strength=0.8 * min(step / warmup, 1.0))(g)
        torch.testing.assert_close(module(g), expected)


def test_strength_rises_with_optimizer_steps_not_with_micro_batches(way):
    module = GradientDensity(10, 0.0, way, strength_warmup=2, accumulation=3)
    g = norms()
    for call in range(9):
        expected = GradientDensity(10, 0.0, way, strength=min(call // 3 / 2, 1.0))(g)
        torch.testing.assert_close(module(g), expected)


def test_evaluation_takes_the_strength_that_the_next_training_step_would_have(way):
    module = GradientDensity(10, 0.0, way, strength_warmup=4)
    for g in stream(2):
        module(g)
    g = norms(seed=7)
    expected = GradientDensity(10, 0.0, way, strength=0.5)(g)
    module.eval()
    torch.testing.assert_close(module(g), expected)


# Limit


@pytest.mark.parametrize("limit", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_max_weight_caps_beta_and_nothing_else(way, limit, strength):
    g, ignored = norms(2000), mask(2000)
    number = (~ignored).sum()
    free = GradientDensity(30, 0.0, way, strength=strength)(g, ignored) * number
    capped = GradientDensity(30, 0.0, way, strength=strength, max_weight=limit)(g, ignored) * number
    assert free.max() > limit
    torch.testing.assert_close(capped, free.clamp(max=limit))


def test_no_limit_leaves_the_rarest_their_weight():
    g = torch.tensor([0.05] * 9999 + [0.95], dtype=torch.float64)
    assert GradientDensity(10, 0.0)(g)[-1].item() == pytest.approx(0.5)
    assert GradientDensity(10, 0.0, max_weight=100.0)(g)[-1].item() == pytest.approx(0.01)


# Settings


def test_the_settings_not_given_are_those_of_the_paper_with_pooled_counts_and_corrected_start():
    written_out = GradientDensity(
        30,
        0.75,
        density="regions",
        normalize="occupied",
        strength=1.0,
        strength_warmup=0,
        bias_correction=True,
        emptied="decay",
        counts="world",
        accumulation=1,
        max_weight=None,
        new_bins="error",
    )
    default = GradientDensity(30, 0.75)
    for g in stream(4):
        assert torch.equal(default(g), written_out(g))
    assert default.counts == "world"
    assert default.average.new_bins == "error"


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
        ("emptied", "forget"),
        ("counts", "global"),
        ("accumulation", 0),
        ("accumulation", 1.5),
        ("max_weight", 0),
        ("max_weight", -2.0),
        ("max_weight", math.nan),
        ("new_bins", "keep"),
    ],
)
@pytest.mark.parametrize("density", ["regions", "exact"])
def test_a_bad_setting_is_named_with_its_value(name, value, density):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GradientDensity(**{"bins": 10, "momentum": 0.5, "density": density, name: value})
