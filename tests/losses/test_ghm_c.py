"""GHM-C against the golden numbers, against loops over the paper's equations, and on the worst of inputs."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghm.losses import GHMC, OHEM, CrossEntropy, FocalLoss
from tests.losses.gradient import (
    MODES,
    assert_checkpointing_changes_nothing,
    assert_ignored_leave_no_trace,
    assert_same_state,
    classification,
    mean_over_regions,
    state_of,
    sum_over_densities,
    value_and_gradient,
)

modest = settings(max_examples=25, deadline=None)

# Measured outside this project: reference/ghm.md, 1.6.
X = torch.tensor([[-4.0, 2.0], [0.5, -1.0], [3.0, -6.0]], dtype=torch.float64)
Y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
VALID = torch.tensor([[True, True], [True, True], [True, False]])
GOLDEN = {
    # M: regions/occupied (the authors' code), regions/all (Eq. 11), exact (Eq. 4-8)
    1: (0.7962007690, 0.7962007924, 1.8550999251),
    3: (1.2251480327, 1.2251480704, 0.7802701649),
    10: (0.7962007690, 0.3981003962, 0.3896718978),
    30: (0.7962007690, 0.1327001321, 0.1327001321),
}


def loop_elements(x, y, valid):
    """g = |p - p^*| (Eq. 3) and CE (Eq. 1) of each valid element, in plain floats."""
    elements = []
    for logit, target, counted in zip(
        x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True
    ):
        if counted:
            p = 1 / (1 + math.exp(-logit))
            elements.append((abs(p - target), -target * math.log(p) - (1 - target) * math.log(1 - p)))
    return elements


def loop_loss(x, y, valid, bins, normalize):
    """(1 / M) sum_j (1 / R_j) sum_{i in j} CE_i (Eq. 9-11), with n for M where asked."""
    return mean_over_regions(loop_elements(x, y, valid), bins, normalize)


def loop_exact_loss(x, y, valid, bins):
    """sum_i CE_i / GD(g_i) (Eq. 4-6, 8), pair by pair."""
    return sum_over_densities(loop_elements(x, y, valid), bins)


def from_norms(g, positives=0):
    """Logits and targets of these gradient norms; the first ones are of positives."""
    y = torch.zeros_like(g)
    y[:positives] = 1.0
    return torch.where(y == 1, 1 - g, g).logit(), y


# Value


@pytest.mark.parametrize("bins", GOLDEN)
@pytest.mark.parametrize("mode", range(3))
def test_golden_numbers(bins, mode):
    """Eq. 8 (exact), Eq. 11 (regions)."""
    density, normalize = MODES[mode]
    loss = GHMC(bins=bins, momentum=0.0, density=density, normalize=normalize)
    assert loss(X, Y, VALID).item() == pytest.approx(GOLDEN[bins][mode], abs=1e-7)


def test_the_defaults_are_the_papers():
    written_out = GHMC(
        30,
        0.75,
        "regions",
        "occupied",
        strength=1.0,
        strength_warmup=0,
        weight=1.0,
        bias_correction=True,
        emptied="decay",
        counts="world",
        accumulation=1,
        max_weight=None,
        new_bins="error",
        scope="pooled",
        levels=5,
    )
    default = GHMC()
    for seed in range(3):
        assert torch.equal(default(*classification(seed)), written_out(*classification(seed)))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("bins", [1, 3, 10, 30, 40])
@pytest.mark.parametrize("seed", range(4))
def test_value_equals_a_loop_over_regions(bins, normalize, seed):
    """Eq. 1, 3, 11."""
    x, y, valid = classification(seed)
    value = GHMC(bins=bins, momentum=0.0, normalize=normalize)(x, y, valid)
    assert value.item() == pytest.approx(loop_loss(x, y, valid, bins, normalize), rel=1e-9)


@pytest.mark.parametrize("bins", [1, 3, 10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_exact_value_equals_a_loop_over_pairs(bins, seed):
    """Eq. 8."""
    x, y, valid = classification(seed)
    value = GHMC(bins=bins, density="exact")(x, y, valid)
    assert value.item() == pytest.approx(loop_exact_loss(x, y, valid, bins), rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_one_region_in_all_is_plain_cross_entropy(momentum, normalize):
    loss = GHMC(bins=1, momentum=momentum, normalize=normalize)
    for seed in range(3):
        # The same number of examples each time: where it varies, the average lags behind it (Eq. 13).
        x, y, _ = classification(seed)
        torch.testing.assert_close(loss(x, y), F.binary_cross_entropy_with_logits(x, y))


@pytest.mark.parametrize("bins", [2, 10, 30])
def test_one_occupied_region_is_plain_cross_entropy(bins):
    # All norms lie in the second region from the top, at slightly different places.
    g = 1 - (1 + torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) / bins
    x, y = from_norms(g.clamp(min=1e-3))
    torch.testing.assert_close(GHMC(bins, 0.0)(x, y), F.binary_cross_entropy_with_logits(x, y))


@pytest.mark.parametrize("bins", [2, 10, 30])
@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_norms_spread_evenly_are_left_as_they_are(bins, normalize):
    g = (torch.arange(20 * bins, dtype=torch.float64) + 0.5) / (20 * bins)
    x, y = from_norms(g, positives=7)
    expected = value_and_gradient(F.binary_cross_entropy_with_logits, x, y)
    torch.testing.assert_close(value_and_gradient(GHMC(bins, 0.0, normalize=normalize), x, y), expected)
    # The exact density feels the ends of [0, 1], where it sees half an example less.
    exact = GHMC(bins, density="exact")(x, y)
    torch.testing.assert_close(exact, expected[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("bins", [3, 10, 30, 300])
def test_normalizing_by_all_regions_is_the_share_of_the_occupied_ones(bins):
    x, y, valid = classification()
    occupied = len({min(int(g * bins), bins - 1) for g, _ in loop_elements(x, y, valid)})
    by_all, by_occupied = (GHMC(bins, 0.0, normalize=name) for name in ("all", "occupied"))
    for all_of, occupied_of in zip(
        value_and_gradient(by_all, x, y, valid), value_and_gradient(by_occupied, x, y, valid), strict=True
    ):
        torch.testing.assert_close(all_of, occupied_of * (occupied / bins))


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), bins=st.integers(1, 40))
def test_the_order_of_anchors_and_classes_does_not_matter(seed, mode, bins):
    x, y, valid = classification(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(40, generator=generator), torch.randperm(3, generator=generator)
    value, gradient = value_and_gradient(GHMC(bins, 0.0, *mode), x, y, valid)
    shuffled = [tensor[rows][:, columns] for tensor in (x, y, valid)]
    other_value, other_gradient = value_and_gradient(GHMC(bins, 0.0, *mode), *shuffled)
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradient, gradient[rows][:, columns])


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), times=st.integers(2, 4))
def test_a_batch_repeated_has_the_same_loss(seed, mode, times):
    x, y, valid = classification(seed)
    once = GHMC(10, 0.0, *mode)(x, y, valid)
    repeated = GHMC(10, 0.0, *mode)(*(tensor.repeat(times, 1) for tensor in (x, y, valid)))
    torch.testing.assert_close(repeated, once)


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
def test_swapping_the_two_classes_of_a_binary_problem_changes_nothing(seed, mode):
    x, y, valid = classification(seed)
    value, gradient = value_and_gradient(GHMC(10, 0.0, *mode), x, y, valid)
    swapped_value, swapped_gradient = value_and_gradient(GHMC(10, 0.0, *mode), -x, 1 - y, valid)
    torch.testing.assert_close(swapped_value, value)
    torch.testing.assert_close(swapped_gradient, -gradient)


@modest
@given(seed=st.integers(0, 10**6))
def test_one_more_easy_negative_hardly_changes_the_value(seed):
    x, y, _ = classification(seed)
    easy = torch.full((1, 3), math.nan, dtype=torch.float64)
    easy[0, 0] = -5.0  # g = 0.007, CE = 0.007
    padded, targets = torch.cat([x, easy]), torch.cat([y, torch.zeros(1, 3)])
    valid = torch.ones_like(padded, dtype=torch.bool)
    valid[-1, 1:] = False
    region = [g for g, _ in loop_elements(x, y, valid[:-1]) if g < 0.1]
    change = GHMC(10, 0.0)(padded, targets, valid) - GHMC(10, 0.0)(x, y)
    # The mean of R_0 losses, none above -log(0.9), moves by at most their largest difference over R_0 + 1.
    assert abs(change) <= -math.log(0.9) / (len(region) + 1)


@pytest.mark.parametrize(("bins", "floor"), [(2, 0.346574), (10, 0.792), (30, 0.913), (100, 0.968)])
def test_with_all_regions_filled_the_value_has_a_floor(bins, floor):
    """(M ln M - ln M!) / M: each region's easiest example has a CE of -log(1 - j / M)."""
    formula = (bins * math.log(bins) - math.lgamma(bins + 1)) / bins
    assert formula == pytest.approx(floor, abs=5e-4)
    easiest = torch.arange(bins, dtype=torch.float64) / bins + 1e-9
    assert GHMC(bins, 0.0)(*from_norms(easiest)).item() == pytest.approx(formula, abs=1e-6)
    others = torch.rand(9 * bins, generator=torch.Generator().manual_seed(bins), dtype=torch.float64)
    x, y = from_norms(torch.cat([easiest, others]), positives=bins // 2)
    assert GHMC(bins, 0.0)(x, y).item() > formula


@pytest.mark.parametrize("mode", MODES)
def test_soft_targets_are_allowed(mode):
    x, _, valid = classification()
    y = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    density, normalize = mode
    expected = loop_loss(x, y, valid, 10, normalize) if density == "regions" else loop_exact_loss(x, y, valid, 10)
    assert GHMC(10, 0.0, *mode)(x, y, valid).item() == pytest.approx(expected, rel=1e-9)


def test_weight_scales_the_loss():
    torch.testing.assert_close(GHMC(weight=2.5)(X, Y, VALID), 2.5 * GHMC()(X, Y, VALID))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_targets_of_any_type_are_taken_as_numbers(dtype):
    assert torch.equal(GHMC()(X, Y.to(dtype), VALID), GHMC()(X, Y, VALID))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", [0.5, 2.0, 1e6])
def test_no_weight_exceeds_the_largest_allowed(mode, limit):
    x, y, valid = classification()
    g = (x.sigmoid() - y).abs()
    free, limited = (GHMC(30, 0.0, *mode, max_weight=largest).density(g, ~valid) for largest in (None, limit))
    torch.testing.assert_close(limited, free.clamp(max=limit / valid.sum()))
    expected = (limited * F.binary_cross_entropy_with_logits(x, y, reduction="none")).sum()
    torch.testing.assert_close(GHMC(30, 0.0, *mode, max_weight=limit)(x, y, valid), expected)


@pytest.mark.parametrize("mode", MODES)
def test_what_it_is_given_is_left_as_it_was(mode):
    given = classification(dtype=torch.float32)
    before = [part.clone() for part in given]
    value_and_gradient(GHMC(10, 0.75, *mode), *given)
    value_and_gradient(GHMC(10, 0.75, *mode), *given[:2])
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


# Gradient


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_treats_weights_as_constants(mode):
    """dL/dx_i = beta_i / N (p_i - y_i) (Eq. 2): beta depends on x but must not be differentiated (Eq. 8)."""
    x, y, valid = classification()
    loss = GHMC(10, 0.0, *mode)
    weights = loss.density((x.sigmoid() - y).abs(), ~valid)
    _, gradient = value_and_gradient(GHMC(10, 0.0, *mode), x, y, valid)
    torch.testing.assert_close(gradient, weights * (x.sigmoid() - y))


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_value_as_long_as_no_example_changes_region(mode, soft):
    """gradcheck differs x by far less than any norm's way to the next region; second derivatives too."""
    x, y, valid = classification(anchors=8)
    if soft:
        y = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    loss = GHMC(10, 0.75, *mode)
    loss(*classification(1))  # an average of its own
    loss.eval()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, y, valid), x)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y, valid), x)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1.0, 0.0, -3.0, 2.0], [1.0, 0.0, 0.0, 0.3]), ([0.0, 1.0], [0.5, 0.0])],
    ids=["elsewhere", "where the first one is 0"],
)
def test_the_second_derivative_is_that_of_cross_entropy_times_the_weight(x, y):
    """beta_i / N p (1 - p) on the diagonal."""
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    weights = GHMC(3, 0.0).density(x.sigmoid() - y)
    curvature = torch.autograd.functional.hessian(lambda x: GHMC(3, 0.0)(x, y), x)
    torch.testing.assert_close(curvature, torch.diag(weights * x.sigmoid() * (1 - x.sigmoid())))


def test_the_gradient_is_the_same_whether_or_not_it_will_be_differentiated():
    x, y, valid = classification()
    _, expected = value_and_gradient(GHMC(), x, y, valid)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(GHMC()(x, y, valid), x, create_graph=True)
    torch.testing.assert_close(gradient.detach(), expected)
    (penalty,) = torch.autograd.grad(gradient.square().sum(), x)
    slope = x.sigmoid() * (1 - x.sigmoid())
    torch.testing.assert_close(penalty * (x.sigmoid() - y), (2 * gradient.square() * slope).detach())


def test_a_loss_that_is_part_of_another_passes_the_gradient_on():
    x, y, valid = classification()
    _, gradient = value_and_gradient(GHMC(), x, y, valid)
    _, other = value_and_gradient(lambda x: 3 * GHMC()(x, y, valid) + x.detach().sum(), x)
    torch.testing.assert_close(other, 3 * gradient)


def test_backward_can_be_run_twice():
    x, y, valid = classification()
    x.requires_grad_()
    value = GHMC()(x, y, valid)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


def test_the_gradient_of_a_single_element_is_its_residual():
    """Eq. 2."""
    _, gradient = value_and_gradient(GHMC(), torch.tensor([[0.3]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[0.3]]).sigmoid() - 1)


@pytest.mark.parametrize("anchors", [50, 500])
def test_the_gradient_mass_is_the_mean_over_regions_of_their_mean_norm(anchors):
    # What the harmony is: N and the crowd of easy examples leave no trace.
    x, y, valid = classification(anchors=anchors)
    g = (x.sigmoid() - y).abs()[valid]
    regions = (g * 10).long()
    expected = torch.stack([g[regions == j].mean() for j in regions.unique()]).mean()
    _, gradient = value_and_gradient(GHMC(bins=10, momentum=0.0), x, y, valid)
    torch.testing.assert_close(gradient.abs().sum(), expected)


# Ignored elements


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows_only", [False, True])
def test_ignored_elements_leave_no_trace_in_value_gradient_and_state(mode, rows_only, junk):
    x, y, valid = classification()
    batch = (x, y, valid[:, 0] if rows_only else valid)
    assert_ignored_leave_no_trace(lambda: GHMC(10, 0.75, *mode), batch, junk)


def test_no_mask_equals_a_mask_that_keeps_everything():
    x, y, valid = classification()
    with_mask, without = GHMC(), GHMC()
    for _ in range(2):
        expected = value_and_gradient(with_mask, x, y, torch.ones_like(valid))
        torch.testing.assert_close(value_and_gradient(without, x, y), expected, rtol=0, atol=0)
    assert_same_state(with_mask, without)


@pytest.mark.parametrize(("density", "normalize"), MODES)
@pytest.mark.parametrize("shape", [(0, 2), (4, 2), (4, 0), (0,), (0, 3, 2, 2)])
def test_nothing_valid_gives_zero_with_a_live_graph(density, normalize, shape):
    loss = GHMC(10, 0.75, density, normalize, strength=0.5, max_weight=5.0)
    x = torch.full(shape, math.nan, requires_grad=True)
    value = loss(x, torch.zeros(shape), torch.zeros(shape[0], dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad.eq(0).all()
    assert all(part.eq(0).all() for part in loss.state_dict().values())


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_a_valid_element_leaves_the_later_ones_alone(mode):
    unbroken, broken = GHMC(10, 0.75, *mode), GHMC(10, 0.75, *mode)
    for step in range(3):
        broken(*classification(9)[:2], torch.zeros(40, dtype=torch.bool))
        assert torch.equal(broken(*classification(step)), unbroken(*classification(step)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_an_invalid_number_that_counts_spoils_the_value_and_nothing_after_it(mode, junk):
    loss, unspoilt = GHMC(10, 0.75, *mode), GHMC(10, 0.75, *mode)
    for step in range(4):
        x, y, valid = classification(step)
        if step == 1:
            x[3], y[3], valid[3] = junk, math.nan, True
        masked = valid & x.isfinite()
        value, gradient = value_and_gradient(loss, x, y, valid)
        expected, expected_gradient = value_and_gradient(unspoilt, x, y, masked)
        assert value.isnan() if step == 1 else torch.equal(value, expected)
        torch.testing.assert_close(gradient[masked], expected_gradient[masked], rtol=0, atol=0)
        assert_same_state(loss, unspoilt)
        assert loss.density.average.counts.isfinite().all()


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("mode", "weight"), list(zip(MODES, [1 / 4, 1 / 60, 1 / 120], strict=True)))
def test_saturated_logits_are_finite(mode, weight, dtype):
    x = torch.tensor([[1e4, -1e4], [1e4, -1e4], [-50.0, -50.0]], dtype=dtype)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    value, gradient = value_and_gradient(GHMC(30, 0.0, *mode), x, y)
    assert value.isfinite()
    # The two hardest outliers, g = 1, are alone in the last region and have the weight of that.
    expected = torch.tensor([[0.0, 0.0], [weight, -weight], [0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(gradient, expected)
    assert value.item() == pytest.approx(2e4 * weight, rel=1e-3)


def test_the_cross_entropy_of_large_logits_is_exact_in_double_precision():
    """log(1 + e^-x) is 2e-9 at x = 20, where torch's softplus says 0 unless told otherwise."""
    x = torch.tensor([20.0, 25.0, 30.0], dtype=torch.float64)
    value = GHMC(1, 0.0)(x, torch.ones_like(x))
    assert value.item() == pytest.approx(sum(math.log1p(math.exp(-each)) for each in x.tolist()) / 3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_are_computed_in_full_precision(mode, dtype):
    x, y, valid = classification(anchors=400)
    x = x.to(dtype)
    value, gradient = value_and_gradient(GHMC(30, 0.75, *mode), x, y.to(dtype), valid)
    expected, expected_gradient = value_and_gradient(GHMC(30, 0.75, *mode), x.float(), y.float(), valid)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_autocast_computes_the_loss_in_full_precision():
    x, y, valid = classification(anchors=100, dtype=torch.float32)
    features, head = torch.eye(100), nn.Linear(100, 3)
    with torch.no_grad():
        head.weight.copy_(x.T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features).detach()
        value, gradient = value_and_gradient(GHMC(), logits, y, valid)
    expected, expected_gradient = value_and_gradient(GHMC(), logits.float(), y, valid)
    assert logits.dtype == gradient.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.bfloat16())


@pytest.mark.parametrize("bins", [10, 30])
def test_single_precision_agrees_with_double(bins):
    x, y, valid = classification(anchors=2000, dtype=torch.float32)
    single = GHMC(bins=bins)(x, y, valid)
    torch.testing.assert_close(single.double(), GHMC(bins=bins)(x.double(), y.double(), valid), rtol=1e-3, atol=0)


def test_double_precision_is_double_to_the_end():
    x, y, valid = classification()
    expected = loop_loss(x, y, valid, 10, "occupied")
    assert GHMC(bins=10, momentum=0.0)(x, y, valid).item() == pytest.approx(expected, rel=1e-12)


# Shapes


def flat(x, y, valid, **options):
    """Value and gradient over the same elements in a single column."""
    value, gradient = value_and_gradient(GHMC(10, 0.0, **options), *(part.reshape(-1, 1) for part in (x, y, valid)))
    return value, gradient.view(x.shape)


@pytest.mark.parametrize("density", ["regions", "exact"])
@pytest.mark.parametrize("shape", [(48,), (24, 2), (48, 1), (2, 6, 4), (2, 3, 2, 4), (2, 3, 2, 2, 2), (1, 1)])
def test_any_shape_is_taken_element_by_element(shape, density):
    x, y, valid = (part.flatten()[: math.prod(shape)].view(shape) for part in classification())
    expected = flat(x, y, valid, density=density)
    torch.testing.assert_close(value_and_gradient(GHMC(10, 0.0, density), x, y, valid), expected)


def test_a_scalar_is_a_batch_of_one():
    x, y = torch.tensor(0.3), torch.tensor(1.0)
    torch.testing.assert_close(GHMC()(x, y), F.binary_cross_entropy_with_logits(x, y))


@pytest.mark.parametrize("density", ["regions", "exact"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda part: part.view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        lambda part: part.view(2, 3, 4, 5).transpose(1, 3),
        lambda part: part.view(20, 6).repeat_interleave(2, 0)[::2],
        lambda part: part.view(20, 6)[:, 1:4],
    ],
    ids=["channels_last", "transposed", "strided", "columns"],
)
def test_the_layout_in_memory_does_not_matter(layout, density):
    x, y, valid = (layout(part) for part in classification())
    expected = value_and_gradient(GHMC(10, 0.0, density), *(part.contiguous() for part in (x, y, valid)))
    for mixed in [(x, y, valid), (x, y.contiguous(), valid), (x.contiguous(), y, valid)]:
        torch.testing.assert_close(value_and_gradient(GHMC(10, 0.0, density), *mixed), expected)


@pytest.mark.parametrize(
    ("shape", "of_mask"),
    [
        ((40, 3), (40,)),
        ((40, 3), (40, 1)),
        ((40, 3), (1, 3)),
        ((4, 3, 2, 5), (4,)),
        ((4, 3, 2, 5), (4, 3)),
        ((4, 3, 2, 5), (4, 1, 2, 5)),
        ((4, 30), (4, 30)),
    ],
)
def test_a_mask_of_the_first_dimensions_holds_for_all_that_follow(shape, of_mask):
    x, y, mask = (part.view(shape) for part in classification())
    narrow = mask.flatten()[: math.prod(of_mask)].view(of_mask)
    wide = narrow.view(*of_mask, *[1] * (len(shape) - len(of_mask))).expand(shape)
    assert torch.equal(GHMC()(x, y, narrow), GHMC()(x, y, wide.contiguous()))


# Class indices


def one_hot(index, classes):
    """In dimension 1, one place after the other; all zeros for what is no class."""
    wanted = torch.zeros(index.numel(), classes)
    for place, label in enumerate(index.flatten().tolist()):
        if 0 <= label < classes:
            wanted[place, label] = 1.0
    return wanted.view(*index.shape, classes).movedim(-1, 1)


def indexed(of_index, classes=4, dtype=torch.int64):
    """Logits with classes in dimension 1, and class indices from -1, background, to C, background too."""
    generator = torch.Generator().manual_seed(len(of_index))
    index = torch.randint(-1, classes + 1, of_index, generator=generator).to(dtype)
    x = torch.randn(of_index[0], classes, *of_index[1:], generator=generator, dtype=torch.float64)
    return x, index, torch.rand(of_index, generator=generator) < 0.7


@pytest.mark.parametrize("make", [GHMC, CrossEntropy, FocalLoss, OHEM])
@pytest.mark.parametrize("of_index", [(50,), (2, 5), (2, 5, 6), (2, 3, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_class_indices_equal_their_one_hot_form(make, of_index, dtype):
    x, index, valid = indexed(of_index, dtype=dtype)
    assert {-1, 0, 3, 4} <= set(index.flatten().tolist()) or len(of_index) == 2
    wide = valid.unsqueeze(1).expand(x.shape)
    expected = value_and_gradient(make(), x, one_hot(index, 4), wide)
    # The mask: of the places, with a dimension for the classes, of the elements.
    for mask in [valid, valid.unsqueeze(1), wide]:
        torch.testing.assert_close(value_and_gradient(make(), x, index, mask), expected)
    without = value_and_gradient(make(), x, one_hot(index, 4))
    torch.testing.assert_close(value_and_gradient(make(), x, index), without)


def test_a_single_class_has_the_index_zero():
    x, y = torch.tensor([[0.3], [-2.0], [1.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    for background in (-1, 1):
        assert torch.equal(GHMC()(x, torch.tensor([0, background, background])), GHMC()(x, y))


def test_a_mask_of_images_is_taken_with_class_indices_too():
    x, index, _ = indexed((2, 5, 6))
    images = torch.tensor([True, False])
    expected = GHMC()(x[:1], index[:1])
    torch.testing.assert_close(GHMC()(x, index, images), expected)


# Strength


def test_no_strength_is_plain_cross_entropy():
    x, y, valid = classification()
    expected = value_and_gradient(lambda x: F.binary_cross_entropy_with_logits(x[valid], y[valid]), x)
    torch.testing.assert_close(value_and_gradient(GHMC(momentum=0.0, strength=0.0), x, y, valid), expected)


def test_no_strength_is_cross_entropy_times_the_mean_weight():
    x, y, valid = classification()
    mean = GHMC(momentum=0.0, normalize="all").density((x.sigmoid() - y).abs(), ~valid).sum()
    value = GHMC(momentum=0.0, normalize="all", strength=0.0)(x, y, valid)
    torch.testing.assert_close(value, mean * F.binary_cross_entropy_with_logits(x[valid], y[valid]))


def test_the_strength_warm_up_leads_from_cross_entropy_to_the_paper():
    warming, full = GHMC(bins=10, strength_warmup=3), GHMC(bins=10)
    for step in range(6):
        x, y, valid = classification(step)
        value, paper = warming(x, y, valid), full(x, y, valid)
        if step == 0:
            torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(x[valid], y[valid]))
        assert math.isclose(value.item(), paper.item(), rel_tol=1e-9) == (step >= 3)


@pytest.mark.parametrize(("density", "normalize"), MODES)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_matched_loss_has_the_gradient_sum_of_cross_entropy(density, normalize, strength):
    x, y, valid = classification()
    loss = GHMC(10, 0.5, density, normalize, strength, weight=20.0, matched=True)
    for _ in range(2):  # the moving average has no part in it
        _, harmonized = value_and_gradient(loss, x, y, valid)
        _, plain = value_and_gradient(CrossEntropy(weight=20.0), x, y, valid)
        assert harmonized.abs().sum().item() == pytest.approx(plain.abs().sum().item(), rel=1e-9)
    alone = GHMC(10, 0.0, density, normalize, strength, weight=20.0)
    _, unmatched = value_and_gradient(alone, x, y, valid)
    loss = GHMC(10, 0.0, density, normalize, strength, weight=20.0, matched=True)
    _, matched = value_and_gradient(loss, x, y, valid)
    ratio = matched[valid] / unmatched[valid]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # all by the same factor


def test_a_matched_warm_up_begins_as_the_cross_entropy_baseline():
    """Whatever the number of regions, and beyond the average's first steps."""
    x, y, valid = classification()
    loss = GHMC(30, 0.75, strength_warmup=100, weight=20.0, normalize="all", bias_correction=False, matched=True)
    expected = value_and_gradient(CrossEntropy(weight=20.0), x, y, valid)
    for got, wanted in zip(value_and_gradient(loss, x, y, valid), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_what_is_ignored_or_not_a_number_has_no_part_in_matching():
    x, y, valid = classification()
    loss = GHMC(10, 0.0, matched=True)
    expected, _ = value_and_gradient(loss, x[valid][:, None], y[valid][:, None])
    got, _ = value_and_gradient(loss, x.masked_fill(~valid, math.nan), y, valid)
    torch.testing.assert_close(got, expected)
    density = GHMC(10, 0.0, matched=True).density
    g = torch.tensor([0.1, 0.5, 0.9, math.nan], dtype=torch.float64)
    torch.testing.assert_close(density(g)[:3], density(g[:3]))


# Pyramid levels

SIZES = [24, 10, 0, 5, 1]


def by_level(loss, step):
    x, y, valid = classification(step)
    return value_and_gradient(loss, x, y, valid, level_sizes=SIZES)


def separately(losses, step):
    """The sum of the values, and the gradient, of one loss called for each level."""

    def total(x):
        parts = zip(losses, x.split(SIZES), y.split(SIZES), valid.split(SIZES), strict=True)
        return sum(loss(*part) for loss, *part in parts)

    x, y, valid = classification(step)
    return value_and_gradient(total, x)


@pytest.mark.parametrize("mode", MODES)
def test_the_scope_level_is_the_sum_of_a_loss_for_each_level(mode):
    joint, alone = GHMC(10, 0.75, *mode, scope="level"), [GHMC(10, 0.75, *mode) for _ in SIZES]
    for step in range(4):
        torch.testing.assert_close(by_level(joint, step), separately(alone, step))
    for density, loss in zip(joint.densities, alone, strict=True):
        assert_same_state(density, loss.density)


@pytest.mark.parametrize("mode", MODES)
def test_the_scope_shared_is_one_loss_called_for_each_level_in_turn(mode):
    joint, alone = GHMC(10, 0.75, *mode, scope="shared"), GHMC(10, 0.75, *mode)
    for step in range(4):
        torch.testing.assert_close(by_level(joint, step), separately([alone] * len(SIZES), step))
    assert_same_state(joint, alone)


@pytest.mark.parametrize("scope", ["level", "shared"])
def test_levels_need_no_mask(scope):
    with_mask, without = GHMC(10, scope=scope), GHMC(10, scope=scope)
    for step in range(3):
        x, y, valid = classification(step)
        expected = with_mask(x, y, torch.ones_like(valid), level_sizes=SIZES)
        assert torch.equal(without(x, y, level_sizes=SIZES), expected)


@pytest.mark.parametrize(("scope", "matters"), [("pooled", False), ("level", False), ("shared", True)])
def test_only_a_shared_average_feels_the_order_of_levels(scope, matters):
    x, y, valid = classification()
    levels = list(zip(x.split(SIZES), y.split(SIZES), valid.split(SIZES), strict=True))
    forth, back = (
        GHMC(10, 0.75, scope=scope)(*map(torch.cat, zip(*order, strict=True)), level_sizes=sizes)
        for order, sizes in [(levels, SIZES), (levels[::-1], SIZES[::-1])]
    )
    assert math.isclose(forth.item(), back.item(), rel_tol=1e-9) != matters


def test_the_pooled_density_does_not_care_about_levels():
    x, y, valid = classification()
    assert torch.equal(GHMC()(x, y, valid, level_sizes=SIZES), GHMC()(x, y, valid))


def test_a_batch_may_have_fewer_levels():
    x, y, valid = classification()
    value = GHMC(10, scope="level", levels=4)(x, y, valid, level_sizes=[30, 10])
    expected = GHMC(10)(x[:30], y[:30], valid[:30]) + GHMC(10)(x[30:], y[30:], valid[30:])
    torch.testing.assert_close(value, expected)


def test_levels_of_class_indices_are_split_by_image():
    x, index, valid = indexed((6, 5, 4))
    value = GHMC(10, scope="level")(x, index, valid, level_sizes=[4, 2])
    expected = GHMC(10)(x[:4], index[:4], valid[:4]) + GHMC(10)(x[4:], index[4:], valid[4:])
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("scope", ["level", "shared"])
@pytest.mark.parametrize("sizes", [None, [], [39], [40, 1], [20, 10]])
def test_level_sizes_that_do_not_fit_are_named(scope, sizes):
    with pytest.raises(ValueError, match=r"^level_sizes=.* 40 in all"):
        GHMC(scope=scope)(*classification(), level_sizes=sizes)


def test_more_levels_than_there_are_averages_for_are_named():
    with pytest.raises(ValueError, match=r"level.*5"):
        GHMC(scope="level", levels=4)(*classification(), level_sizes=[8] * 5)


# State


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("scope", ["pooled", "level", "shared"])
def test_activation_checkpointing_changes_nothing(scope, use_reentrant):
    batches = [classification(step) for step in range(3)]
    assert_checkpointing_changes_nothing(
        lambda: GHMC(10, 0.75, scope=scope, strength_warmup=2), batches, SIZES, use_reentrant
    )


@pytest.mark.parametrize("scope", ["pooled", "level", "shared"])
def test_evaluation_and_no_grad_leave_the_state_alone(scope):
    loss = GHMC(10, scope=scope)
    by_level(loss, 0)
    before = state_of(loss)
    with torch.no_grad():
        loss(*classification(1), level_sizes=SIZES)
    loss.eval()
    by_level(loss, 2)
    assert all(torch.equal(part, before[name]) for name, part in loss.state_dict().items())


def moved_by_state_dict(loss, make):
    fresh = make()
    fresh.load_state_dict(loss.state_dict())
    return fresh


@pytest.mark.parametrize(
    "move",
    [
        moved_by_state_dict,
        lambda loss, make: copy.deepcopy(loss),
        lambda loss, make: pickle.loads(pickle.dumps(loss)),
    ],
    ids=["state_dict", "deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"scope": "level"}, {"scope": "shared"}, {"accumulation": 2}, {"density": "exact"}],
    ids=str,
)
def test_a_moved_loss_continues_identically(options, move):
    def make():
        return GHMC(strength_warmup=4, **options)

    unbroken, moved = make(), make()
    expected = [by_level(unbroken, step) for step in range(8)]
    for step in range(3):
        by_level(moved, step)
    moved = move(moved, make)
    for step in range(3, 8):
        torch.testing.assert_close(by_level(moved, step), expected[step], rtol=0, atol=0)
    assert_same_state(moved, unbroken)


@pytest.mark.parametrize("scope", ["pooled", "level", "shared"])
def test_an_average_of_other_regions_is_named_or_forgotten(scope):
    old = GHMC(10, scope=scope)
    by_level(old, 0)
    with pytest.raises(ValueError, match=r"bins=30: .* 10 regions; set bins=10"):
        GHMC(30, scope=scope).load_state_dict(old.state_dict())
    new = GHMC(30, scope=scope, new_bins="reset")
    by_level(new, 5)
    new.load_state_dict(old.state_dict())
    assert_same_state(new, GHMC(30, scope=scope))


# Learning


def imbalanced(seed, flipped=0.0):
    """A problem with 2% positives, of which a share of labels, drawn anywhere, is wrong."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(4000, 4, generator=generator)
    direction = torch.tensor([1.0, -2.0, 0.5, 1.5])
    score = features @ (direction / direction.norm()) + 0.3 * torch.randn(4000, generator=generator)
    labels = score > score.quantile(0.98)
    wrong = torch.rand(4000, generator=generator) < flipped
    return features, (labels ^ wrong).float()[:, None], wrong[:, None]


def trained(model, loss, features, y, prior):
    nn.init.constant_(model[-1].bias, -math.log((1 - prior) / prior))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss(model(features), y).backward()
        optimizer.step()
    return model(features).detach()


@pytest.mark.parametrize("prior", [0.01, 0.5])
@pytest.mark.parametrize("momentum", [0.75, 0.9])
@pytest.mark.parametrize("seed", range(2))
def test_an_imbalanced_problem_is_learnt_from_any_prior(prior, momentum, seed):
    torch.manual_seed(seed)
    features, y, _ = imbalanced(seed)
    logits = trained(nn.Sequential(nn.Linear(4, 1)), GHMC(momentum=momentum), features, y, prior).flatten()
    positive = y.flatten() > 0
    # Of pairs of a positive and a negative, those in which the positive scores higher.
    assert (logits[positive][:, None] > logits[~positive]).float().mean() > 0.98


@pytest.mark.parametrize("seed", range(3))
def test_of_a_converged_model_wrong_labels_get_less_gradient_and_rare_right_ones_more(seed):
    """1% of labels flipped. Focal loss turns to them more than cross-entropy does, GHM-C less."""
    torch.manual_seed(seed)
    features, y, wrong = imbalanced(seed, flipped=0.01)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    logits = trained(model, CrossEntropy(), features, y, prior=0.01)
    to_wrong, to_positives = {}, {}
    for loss in [GHMC(), CrossEntropy(), FocalLoss()]:
        _, gradient = value_and_gradient(loss, logits, y)
        share = gradient.abs() / gradient.abs().sum()
        to_wrong[type(loss)], to_positives[type(loss)] = share[wrong].sum(), share[(y > 0) & ~wrong].sum()
    assert to_wrong[GHMC] < 0.95 * to_wrong[CrossEntropy] < 0.8 * to_wrong[FocalLoss]
    assert to_positives[GHMC] > 1.5 * max(to_positives[CrossEntropy], to_positives[FocalLoss])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:2]), r"target of shape \(2, 2\) and type torch.float64: must have the input's shape \(3, 2\)"),
        ((X, Y[:, 0]), r"target of shape \(3,\) and type torch.float64: .* class indices without its dimension 1"),
        ((X, torch.zeros(2, dtype=torch.int64)), r"target of shape \(2,\) and type torch.int64"),
        ((X[:, 0], torch.zeros((), dtype=torch.int64)), r"target of shape \(\)"),
        ((X.view(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)), r"target of shape \(1, 2\)"),
        ((X, Y, VALID.float()), r"valid of shape \(3, 2\) and type torch.float32: must be bool"),
        ((X, Y, VALID[:2]), r"valid of shape \(2, 2\) and type torch.bool: must be bool of shape \(3, 2\) or \(3,\)"),
        ((X, Y, VALID[0]), r"valid of shape \(2,\)"),
        ((X, Y, VALID[..., None]), r"valid of shape \(3, 2, 1\)"),
        ((X, torch.zeros(3, dtype=torch.int64), VALID[:2, 0]), r"valid of shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GHMC()(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bins", 0),
        ("momentum", 1.0),
        ("strength", 2.0),
        ("density", "kde"),
        ("normalize", "none"),
        ("strength_warmup", -1),
        ("emptied", "reset"),
        ("counts", "global"),
        ("accumulation", 0),
        ("max_weight", 0.0),
        ("new_bins", "ignore"),
        ("scope", "image"),
        ("levels", 0),
    ],
)
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GHMC(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"emptied": "stay"}, "^emptied=stay: needs bias_correction=False"),
        ({"scope": "shared", "accumulation": 2}, "^scope=shared: .* needs accumulation=1"),
    ],
)
def test_settings_that_exclude_one_another_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GHMC(**options)
