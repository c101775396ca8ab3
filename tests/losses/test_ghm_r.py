"""GHM-R against the golden numbers and a loop over Eq. 17-19."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses import ASL1, GHMR
from tests.losses.gradient import (
    MODES,
    assert_checkpointing_changes_nothing,
    assert_ignored_leave_no_trace,
    assert_same_state,
    boxes,
    mean_over_regions,
    state_of,
    sum_over_densities,
    value_and_gradient,
)

modest = settings(max_examples=25, deadline=None)


def loop_elements(x, y, valid, mu):
    """gr = |d| / sqrt(d^2 + mu^2) (Eq. 18) and ASL1 (Eq. 17) of each valid element, in plain floats."""
    elements = []
    for a, b, counted in zip(x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True):
        if counted:
            root = math.sqrt((a - b) ** 2 + mu**2)
            elements.append((abs(a - b) / root, root - mu))
    return elements


def loop_loss(x, y, valid, mu, bins, normalize):
    """(1 / M) sum_j (1 / R_j) sum_{i in j} ASL1(d_i) (Eq. 19 with Eq. 9), or n for M; plain floats."""
    return mean_over_regions(loop_elements(x, y, valid, mu), bins, normalize)


def loop_exact_loss(x, y, valid, mu, bins):
    """sum_i ASL1(d_i) / GD(gr_i) (Eq. 4-6, 19), pair by pair."""
    return sum_over_densities(loop_elements(x, y, valid, mu), bins)


def from_norms(gr, mu=0.02):
    """Errors of these gradient norms, all below 1: the inverse of Eq. 18."""
    return mu * gr / (1 - gr**2).sqrt()


# Value


@pytest.mark.parametrize(
    ("valid", "expected"),
    [([True, True, True, True], 0.1227611941), ([True, True, True, False], 0.0035483169)],
)
def test_golden_numbers(valid, expected):
    """Eq. 19, measured outside this project."""
    x = torch.tensor([[0.0, 0.01, -0.02, 0.5]], dtype=torch.float64)
    loss = GHMR(mu=0.02, bins=10, momentum=0.0)
    assert loss(x, torch.zeros_like(x), torch.tensor([valid])).item() == pytest.approx(expected, abs=1e-8)


def test_the_defaults_are_the_papers():
    written_out = GHMR(
        0.02,
        10,
        0.7,
        "regions",
        "occupied",
        1.0,
        0,
        1.0,
        bias_correction=True,
        emptied="decay",
        counts="world",
        accumulation=1,
        max_weight=None,
        scope="pooled",
    )
    default = GHMR()
    for seed in range(3):
        assert torch.equal(default(*boxes(seed)), written_out(*boxes(seed)))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("mu", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("bins", [1, 3, 10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_value_equals_a_loop_over_regions(mu, bins, normalize, seed):
    """Eq. 17, 18, 19."""
    x, y, valid = boxes(seed)
    value = GHMR(mu=mu, bins=bins, momentum=0.0, normalize=normalize)(x, y, valid)
    assert value.item() == pytest.approx(loop_loss(x, y, valid, mu, bins, normalize), rel=1e-9)


@pytest.mark.parametrize("mu", [0.02, 1.0])
@pytest.mark.parametrize("bins", [1, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_exact_value_equals_a_loop_over_pairs(mu, bins, seed):
    """Eq. 19 with the density of Eq. 4."""
    x, y, valid = boxes(seed)
    value = GHMR(mu=mu, bins=bins, density="exact")(x, y, valid)
    assert value.item() == pytest.approx(loop_exact_loss(x, y, valid, mu, bins), rel=1e-9)


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_one_region_in_all_is_asl1(normalize):
    x, y, valid = boxes()
    expected = value_and_gradient(ASL1(), x, y, valid)
    torch.testing.assert_close(value_and_gradient(GHMR(bins=1, normalize=normalize), x, y, valid), expected)


def test_one_occupied_region_is_asl1():
    # |d| from mu to 2 mu: gr from 0.71 to 0.89, all in the last third.
    d = torch.linspace(0.02, 0.04, 40, dtype=torch.float64).view(10, 4)
    torch.testing.assert_close(GHMR(bins=3)(d, torch.zeros_like(d)), ASL1()(d, torch.zeros_like(d)))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_norms_spread_evenly_are_left_as_they_are(normalize):
    d = from_norms((torch.arange(200, dtype=torch.float64) + 0.5) / 200)
    loss = GHMR(momentum=0.0, normalize=normalize)
    torch.testing.assert_close(loss(d, torch.zeros_like(d)), ASL1()(d, torch.zeros_like(d)))


@pytest.mark.parametrize(("bins", "floor"), [(10, 0.005862), (2, 0.02 * (1 / math.sqrt(0.75) - 1) / 2)])
def test_with_all_regions_filled_the_value_has_a_floor(bins, floor):
    """(1/M) sum_j mu (1 / sqrt(1 - (j/M)^2) - 1): each region's easiest example."""
    easiest = torch.arange(bins, dtype=torch.float64) / bins + 1e-9
    value = GHMR(0.02, bins, 0.0)(from_norms(easiest), torch.zeros_like(easiest))
    assert value.item() == pytest.approx(floor, abs=1e-6)
    others = torch.rand(9 * bins, generator=torch.Generator().manual_seed(bins), dtype=torch.float64) * 0.999
    d = from_norms(torch.cat([easiest, others]))
    assert GHMR(0.02, bins, 0.0)(d, torch.zeros_like(d)) > value


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
def test_the_order_of_boxes_and_coordinates_does_not_matter(seed, mode):
    x, y, valid = boxes(seed)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    value, gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), x, y, valid)
    shuffled = [tensor[rows].flip(1) for tensor in (x, y, valid)]
    other_value, other_gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), *shuffled)
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradient, gradient[rows].flip(1))


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), times=st.integers(2, 4))
def test_a_batch_repeated_has_the_same_loss(seed, mode, times):
    batch = boxes(seed)
    once = GHMR(0.02, 10, 0.0, *mode)(*batch)
    torch.testing.assert_close(GHMR(0.02, 10, 0.0, *mode)(*(part.repeat(times, 1) for part in batch)), once)


def test_weight_scales_the_loss():
    torch.testing.assert_close(GHMR(weight=4.0)(*boxes()), 4 * GHMR()(*boxes()))


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_no_weight_exceeds_the_largest_allowed(limit):
    x, y, valid = boxes()
    free, limited = (GHMR(momentum=0.0, max_weight=largest) for largest in (None, limit))
    slope = (x - y) / ((x - y) ** 2 + 0.02**2).sqrt()
    _, gradient = value_and_gradient(free, x, y, valid)
    _, capped = value_and_gradient(limited, x, y, valid)
    largest = limit / valid.sum() * slope.abs()
    torch.testing.assert_close(capped.abs(), gradient.abs().minimum(largest))


def test_no_strength_is_asl1():
    x, y, valid = boxes()
    torch.testing.assert_close(GHMR(strength=0.0, momentum=0.0)(x, y, valid), ASL1()(x, y, valid))


# Gradient


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_treats_weights_as_constants(mode):
    """dL/dd_i = beta_i / N d_i / sqrt(d_i^2 + mu^2) (Eq. 18, 19)."""
    x, y, valid = boxes()
    slope = (x - y) / ((x - y) ** 2 + 0.02**2).sqrt()
    weights = GHMR(0.02, 10, 0.0, *mode).density(slope, ~valid)
    _, gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), x, y, valid)
    torch.testing.assert_close(gradient, weights * slope)


@pytest.mark.parametrize("mode", MODES[:2])
def test_the_gradient_is_that_of_the_value_as_long_as_no_example_changes_region(mode):
    """gradcheck differs x by far less than any norm's way to the next region; targets and second derivatives too."""
    x, y, valid = boxes(positives=6)
    loss = GHMR(1.0, 10, 0.7, *mode)
    loss(*boxes(1))
    loss.eval()
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, valid), (x, y))
    assert torch.autograd.gradgradcheck(lambda x, y: loss(x, y, valid), (x, y))


def test_the_gradient_mass_is_the_mean_over_regions_of_their_mean_norm():
    x, y, valid = boxes(positives=200)
    gr = ((x - y).abs() / ((x - y) ** 2 + 0.02**2).sqrt())[valid]
    regions = (gr * 10).long().clamp(max=9)
    expected = torch.stack([gr[regions == j].mean() for j in regions.unique()]).mean()
    _, gradient = value_and_gradient(GHMR(momentum=0.0), x, y, valid)
    torch.testing.assert_close(gradient.abs().sum(), expected)


def test_errors_of_opposite_sign_have_opposite_gradients():
    x, y, valid = boxes()
    value, gradient = value_and_gradient(GHMR(), x, y, valid)
    mirrored_value, mirrored_gradient = value_and_gradient(GHMR(), 2 * y - x, y, valid)
    torch.testing.assert_close(mirrored_value, value)
    torch.testing.assert_close(mirrored_gradient, -gradient)


# Ignored elements


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows_only", [False, True])
def test_ignored_elements_leave_no_trace_in_value_gradient_and_state(mode, rows_only, junk):
    x, y, valid = boxes()
    batch = (x, y, valid[:, 0] if rows_only else valid)
    assert_ignored_leave_no_trace(lambda: GHMR(0.02, 10, 0.7, *mode), batch, junk)


@pytest.mark.parametrize(("density", "normalize"), MODES)
@pytest.mark.parametrize("positives", [0, 3])
def test_no_positive_gives_zero_with_a_live_graph(density, normalize, positives):
    loss = GHMR(density=density, normalize=normalize)
    x = torch.full((positives, 4), math.nan, requires_grad=True)
    value = loss(x, torch.zeros(positives, 4), torch.zeros(positives, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad.eq(0).all()
    assert all(part.eq(0).all() for part in loss.state_dict().values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_an_invalid_number_that_counts_spoils_the_value_and_nothing_after_it(mode, junk):
    loss, unspoilt = GHMR(0.02, 10, 0.7, *mode), GHMR(0.02, 10, 0.7, *mode)
    for step in range(4):
        x, y, valid = boxes(step)
        if step == 1:
            x[3], valid[3] = junk, True
        masked = valid & x.isfinite()
        value, gradient = value_and_gradient(loss, x, y, valid)
        expected, expected_gradient = value_and_gradient(unspoilt, x, y, masked)
        assert not value.isfinite() if step == 1 else torch.equal(value, expected)
        torch.testing.assert_close(gradient[masked], expected_gradient[masked], rtol=0, atol=0)
        assert_same_state(loss, unspoilt)


# Precision and shapes


@pytest.mark.parametrize("mode", MODES)
def test_huge_and_vanishing_errors_are_finite(mode):
    # The square of 1e30 is no float32 any more; those of 1e-30 is zero.
    x = torch.tensor([[1e30, -1e30, 1e-30, 0.0], [1e4, -1e4, 1.0, -1e-4]])
    value, gradient = value_and_gradient(GHMR(0.02, 10, 0.7, *mode), x, torch.zeros_like(x))
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 0] > 0 > gradient[0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_offsets_are_computed_in_full_precision(dtype):
    x, y, valid = boxes()
    x, y = x.to(dtype), y.to(dtype)
    value, gradient = value_and_gradient(GHMR(), x, y, valid)
    expected, expected_gradient = value_and_gradient(GHMR(), x.float(), y.float(), valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("shape", [(96,), (24, 4), (2, 4, 4, 3), (1, 1)])
def test_any_shape_is_taken_element_by_element(shape):
    x, y, valid = (part.flatten()[: math.prod(shape)].view(shape) for part in boxes())
    value, gradient = value_and_gradient(GHMR(momentum=0.0), *(part.reshape(-1, 1) for part in (x, y, valid)))
    torch.testing.assert_close(value_and_gradient(GHMR(momentum=0.0), x, y, valid), (value, gradient.view(shape)))


def test_the_layout_in_memory_does_not_matter():
    x, y, valid = boxes()
    expected_value, expected = value_and_gradient(GHMR(), x, y, valid)
    value, gradient = value_and_gradient(GHMR(), x.T, y.T.contiguous(), valid.T)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected.T)


# Pyramid levels and state

SIZES = [12, 9, 0, 3, 1]


def by_level(loss, step):
    return value_and_gradient(loss, *boxes(step), level_sizes=SIZES)


@pytest.mark.parametrize("scope", ["level", "shared"])
def test_levels_are_summed_with_averages_of_their_own_or_a_shared_one(scope):
    joint = GHMR(scope=scope)
    alone = [GHMR() for _ in SIZES] if scope == "level" else [GHMR()] * len(SIZES)
    for step in range(4):
        rows = list(zip(*(part.split(SIZES) for part in boxes(step)), strict=True))
        expected, expected_gradients = zip(
            *(value_and_gradient(loss, *part) for loss, part in zip(alone, rows, strict=True)), strict=True
        )
        value, gradient = by_level(joint, step)
        torch.testing.assert_close(value, sum(expected))
        torch.testing.assert_close(gradient, torch.cat(expected_gradients))
    for density, loss in zip(joint.densities, alone, strict=False):
        assert_same_state(density, loss.density)


@pytest.mark.parametrize("scope", ["level", "shared"])
@pytest.mark.parametrize("sizes", [None, [24], [25, 1]])
def test_level_sizes_that_do_not_fit_are_named(scope, sizes):
    with pytest.raises(ValueError, match=r"^level_sizes=.* 25 in all"):
        GHMR(scope=scope)(*boxes(), level_sizes=sizes)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("scope", ["pooled", "level", "shared"])
def test_activation_checkpointing_changes_nothing(scope, use_reentrant):
    batches = [boxes(step) for step in range(3)]
    assert_checkpointing_changes_nothing(lambda: GHMR(scope=scope), batches, SIZES, use_reentrant)


@pytest.mark.parametrize("scope", ["pooled", "level", "shared"])
def test_a_loaded_loss_continues_identically(scope):
    unbroken, first, second = (GHMR(scope=scope, strength_warmup=4) for _ in range(3))
    expected = [by_level(unbroken, step) for step in range(6)]
    for step in range(3):
        by_level(first, step)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        torch.testing.assert_close(by_level(second, step), expected[step], rtol=0, atol=0)


def test_evaluation_and_no_grad_leave_the_state_alone():
    loss = GHMR()
    loss(*boxes())
    before = state_of(loss)
    with torch.no_grad():
        loss(*boxes(1))
    loss.eval()
    loss(*boxes(2))
    assert all(torch.equal(part, before[name]) for name, part in loss.state_dict().items())


# Bad input


def test_shapes_that_do_not_fit_are_named():
    x, y, valid = boxes()
    with pytest.raises(ValueError, match=r"target of shape \(24, 4\) and type torch.float64: must have"):
        GHMR()(x, y[1:], valid)
    with pytest.raises(ValueError, match=r"valid of shape \(4,\)"):
        GHMR()(x, y, valid[0])


@pytest.mark.parametrize(
    ("name", "value"), [("mu", 0.0), ("mu", -0.02), ("mu", math.nan), ("bins", 0), ("momentum", -1.0)]
)
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GHMR(**{name: value})
