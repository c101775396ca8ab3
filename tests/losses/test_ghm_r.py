"""GHM-R against the golden numbers and a loop over Eq. 17-19."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses import ASL1, GHMR
from tests.losses.gradient import value_and_gradient

MODES = [("regions", "occupied"), ("regions", "all"), ("exact", "occupied")]


def case(seed=0, positives=25, dtype=torch.float64):
    """Box offsets, from nearly right to far off, with a mask."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(positives, 4, generator=generator, dtype=dtype)
    error = torch.randn(positives, 4, generator=generator, dtype=dtype) ** 3 * 0.1
    return target + error, target, torch.rand(positives, 4, generator=generator) < 0.8


def loop_loss(x, y, valid, mu, bins, normalize):
    """(1 / M) sum_j (1 / R_j) sum_{i in j} ASL1(d_i), regions by gr = |d| / sqrt(d^2 + mu^2); plain floats."""
    regions = {}
    for a, b, counted in zip(x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True):
        if counted:
            root = math.sqrt((a - b) ** 2 + mu**2)
            region = min(int(abs(a - b) / root * bins), bins - 1)
            regions.setdefault(region, []).append(root - mu)
    means = [sum(losses) / len(losses) for losses in regions.values()]
    return sum(means) / (len(means) if normalize == "occupied" else bins)


@pytest.mark.parametrize(
    ("valid", "expected"),
    [([True, True, True, True], 0.1227611941), ([True, True, True, False], 0.0035483169)],
)
def test_golden_numbers(valid, expected):
    x = torch.tensor([[0.0, 0.01, -0.02, 0.5]], dtype=torch.float64)
    loss = GHMR(mu=0.02, bins=10, momentum=0.0)
    assert loss(x, torch.zeros_like(x), torch.tensor([valid])).item() == pytest.approx(expected, abs=1e-7)


def test_the_defaults_are_the_papers():
    default, written_out = GHMR(), GHMR(0.02, 10, 0.7, "regions", "occupied", 1.0, 0, 1.0)
    for seed in range(3):
        assert torch.equal(default(*case(seed)), written_out(*case(seed)))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("mu", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("bins", [1, 3, 10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_value_equals_a_loop_over_regions(mu, bins, normalize, seed):
    x, y, valid = case(seed)
    value = GHMR(mu=mu, bins=bins, momentum=0.0, normalize=normalize)(x, y, valid)
    assert value.item() == pytest.approx(loop_loss(x, y, valid, mu, bins, normalize), rel=1e-6)


def test_one_region_in_all_is_asl1():
    x, y, valid = case()
    torch.testing.assert_close(GHMR(bins=1)(x, y, valid), ASL1()(x, y, valid))


def test_one_occupied_region_is_asl1():
    # |d| from mu to 2 mu: gr from 0.71 to 0.89, all in the last third.
    d = torch.linspace(0.02, 0.04, 40, dtype=torch.float64).view(10, 4)
    torch.testing.assert_close(GHMR(bins=3)(d, torch.zeros_like(d)), ASL1()(d, torch.zeros_like(d)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
def test_the_order_of_boxes_and_coordinates_does_not_matter(seed, mode):
    x, y, valid = case(seed)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    value, gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), x, y, valid)
    shuffled = [tensor[rows].flip(1) for tensor in (x, y, valid)]
    other_value, other_gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), *shuffled)
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradient, gradient[rows].flip(1))


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_treats_weights_as_constants(mode):
    """dL/dd_i = beta_i / N d_i / sqrt(d_i^2 + mu^2) (Eq. 18, 19)."""
    x, y, valid = case()
    slope = (x - y) / ((x - y) ** 2 + 0.02**2).sqrt()
    beta = GHMR(0.02, 10, 0.0, *mode).density(slope.abs(), valid)
    _, gradient = value_and_gradient(GHMR(0.02, 10, 0.0, *mode), x, y, valid)
    torch.testing.assert_close(gradient, beta / valid.sum() * slope, rtol=1e-6, atol=1e-12)


def test_errors_of_opposite_sign_have_opposite_gradients():
    x, y, valid = case()
    value, gradient = value_and_gradient(GHMR(), x, y, valid)
    mirrored_value, mirrored_gradient = value_and_gradient(GHMR(), 2 * y - x, y, valid)
    torch.testing.assert_close(mirrored_value, value)
    torch.testing.assert_close(mirrored_gradient, -gradient)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows_only", [False, True])
def test_ignored_elements_leave_no_trace(mode, rows_only, junk):
    x, y, valid = case()
    if rows_only:
        valid = valid[:, 0]
    expected, expected_gradient = value_and_gradient(GHMR(0.02, 10, 0.7, *mode), x[valid], y[valid])
    bad_x, bad_y = x.clone(), y.clone()
    bad_x[~valid], bad_y[~valid] = junk, junk
    value, gradient = value_and_gradient(GHMR(0.02, 10, 0.7, *mode), bad_x, bad_y, valid)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[valid], expected_gradient)
    assert gradient[~valid].eq(0).all()


@pytest.mark.parametrize(("density", "normalize"), MODES)
@pytest.mark.parametrize("positives", [0, 3])
def test_no_positive_gives_zero_with_a_live_graph(density, normalize, positives):
    loss = GHMR(density=density, normalize=normalize)
    x = torch.full((positives, 4), math.nan, requires_grad=True)
    value = loss(x, torch.zeros(positives, 4), torch.zeros(positives, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad.eq(0).all()
    assert loss.density.average.eq(0).all()


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
    x, y, valid = case()
    x, y = x.to(dtype), y.to(dtype)
    value, gradient = value_and_gradient(GHMR(), x, y, valid)
    expected, expected_gradient = value_and_gradient(GHMR(), x.float(), y.float(), valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_weight_scales_the_loss():
    torch.testing.assert_close(GHMR(weight=4.0)(*case()), 4 * GHMR()(*case()))


def test_evaluation_and_no_grad_leave_the_state_alone():
    loss = GHMR()
    loss(*case())
    before = loss.density.average.clone()
    with torch.no_grad():
        loss(*case(1))
    loss.eval()
    loss(*case(2))
    assert torch.equal(loss.density.average, before)


@pytest.mark.parametrize(
    ("name", "value"), [("mu", 0.0), ("mu", -0.02), ("mu", math.nan), ("bins", 0), ("momentum", -1.0)]
)
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GHMR(**{name: value})
