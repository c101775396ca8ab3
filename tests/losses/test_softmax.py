"""Softmax cross-entropy against torch's; GHM-C with softmax, against plain loops and two classes' sigmoid."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghm.losses import ASL1, GHMC, GHMR, OHEM, CrossEntropy, FocalLoss, SoftmaxCrossEntropy, SoftmaxGHMC
from tests.losses.gradient import (
    MODES,
    assert_same_state,
    mean_over_regions,
    sum_over_densities,
    value_and_gradient,
)

modest = settings(max_examples=25, deadline=None)


def places(seed=0, shape=(60,), classes=4, dtype=torch.float64):
    """Logits with classes in dimension 1, the class of each place, most of them the first, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, classes, shape, generator=generator)
    index = torch.where(torch.rand(shape, generator=generator) < 0.7, 0, index)
    x = torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=dtype) * 2
    x[:, 0] += 1.5
    return x, index, torch.rand(shape, generator=generator) < 0.8


def probabilities(seed=0, classes=4, count=60):
    generator = torch.Generator().manual_seed(500 + seed)
    return torch.rand(count, classes, generator=generator, dtype=torch.float64).pow(4).add(1e-3).softmax(1)


def loop_elements(x, y, valid):
    """g = 1/2 sum_c |p_c - y_c| and CE = -sum_c y_c log p_c of each valid row, in plain floats."""
    elements = []
    for logits, targets, counted in zip(x.tolist(), y.tolist(), valid.tolist(), strict=True):
        if counted:
            total = sum(math.exp(logit) for logit in logits)
            p = [math.exp(logit) / total for logit in logits]
            g = sum(abs(a - b) for a, b in zip(p, targets, strict=True)) / 2
            elements.append((g, -sum(b * math.log(a) for a, b in zip(p, targets, strict=True) if b)))
    return elements


def loop_loss(x, y, valid, bins, normalize):
    return mean_over_regions(loop_elements(x, y, valid), bins, normalize)


# Value


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("bins", [1, 3, 10, 30])
@pytest.mark.parametrize("soft", [False, True])
def test_value_equals_a_loop_over_regions(bins, normalize, soft):
    x, index, valid = places()
    y = probabilities() if soft else F.one_hot(index, 4).double()
    loss = SoftmaxGHMC(bins, 0.0, normalize=normalize, weight=3.0)
    expected = 3 * loop_loss(x, y, valid, bins, normalize)
    assert loss(x, y, valid).item() == pytest.approx(expected, rel=1e-9)
    if not soft:
        assert loss(x, index, valid).item() == pytest.approx(expected, rel=1e-9)


def test_exact_value_equals_a_loop_over_pairs():
    x, index, valid = places()
    total = sum_over_densities(loop_elements(x, F.one_hot(index, 4), valid), bins=10)
    assert SoftmaxGHMC(10, density="exact")(x, index, valid).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_two_classes_are_the_sigmoid_of_their_difference(mode):
    """g of Eq. 3, the value and the average; a logit's gradient is the difference's, with its sign."""
    softmax, sigmoid = SoftmaxGHMC(10, 0.75, *mode), GHMC(10, 0.75, *mode)
    for seed in range(3):
        x, index, valid = places(seed, classes=2)
        value, gradient = value_and_gradient(softmax, x, index, valid)
        expected, of_difference = value_and_gradient(sigmoid, x[:, 1] - x[:, 0], index, valid)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, torch.stack([-of_difference, of_difference], 1))
    assert_same_state(softmax, sigmoid)


@pytest.mark.parametrize("soft", [False, True])
def test_one_region_in_all_is_plain_cross_entropy(soft):
    x, index, _ = places()
    y = probabilities() if soft else index
    expected = value_and_gradient(F.cross_entropy, x, y)
    torch.testing.assert_close(value_and_gradient(SoftmaxGHMC(bins=1), x, y), expected)


def test_no_strength_is_plain_cross_entropy():
    x, index, valid = places()
    ignoring = index.masked_fill(~valid, -100)
    expected = value_and_gradient(F.cross_entropy, x, ignoring)
    torch.testing.assert_close(value_and_gradient(SoftmaxGHMC(strength=0.0, momentum=0.0), x, index, valid), expected)


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
def test_neither_order_nor_a_shift_of_a_rows_logits_matters(seed, mode):
    x, index, valid = places(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(len(x), generator=generator), torch.randperm(4, generator=generator)
    value, gradient = value_and_gradient(SoftmaxGHMC(10, 0.0, *mode), x, index, valid)
    shifted = (x + torch.randn(len(x), 1, generator=generator, dtype=x.dtype))[rows][:, columns]
    other = columns.argsort()[index[rows]]
    other_value, other_gradient = value_and_gradient(SoftmaxGHMC(10, 0.0, *mode), shifted, other, valid[rows])
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradient, gradient[rows][:, columns])


def test_the_settings_are_those_of_ghm_c():
    x, index, valid = places()
    free = SoftmaxGHMC(momentum=0.0).density(1 - x.softmax(1)[torch.arange(60), index], ~valid)
    ce = F.cross_entropy(x, index, reduction="none")
    value = SoftmaxGHMC(momentum=0.0, max_weight=0.7)(x, index, valid)
    torch.testing.assert_close(value, (free.clamp(max=0.7 / valid.sum()) * ce).sum())
    with pytest.raises(ValueError, match=r"^bins=0: must "):
        SoftmaxGHMC(bins=0)


def test_levels_are_rows():
    x, index, valid = places()
    value = SoftmaxGHMC(10, scope="level")(x, index, valid, level_sizes=[45, 15])
    parts = zip(*(part.split([45, 15]) for part in (x, index, valid)), strict=True)
    torch.testing.assert_close(value, sum(SoftmaxGHMC(10)(*part) for part in parts))


# Gradient


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_treats_weights_as_constants(mode):
    x, index, valid = places()
    residual = x.softmax(1) - F.one_hot(index, 4)
    weights = SoftmaxGHMC(10, 0.0, *mode).density(residual.abs().sum(1) / 2, ~valid)
    _, gradient = value_and_gradient(SoftmaxGHMC(10, 0.0, *mode), x, index, valid)
    torch.testing.assert_close(gradient, weights[:, None] * residual)


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_value_as_long_as_no_example_changes_region(soft):
    x, index, valid = places(shape=(8,))
    y = probabilities(count=8) if soft else index
    loss = SoftmaxGHMC(10, 0.75)
    loss(*places(1))
    loss.eval()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, y, valid), x)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y, valid), x)


# Ignored places


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["mask", "index"])
def test_ignored_places_leave_no_trace_in_value_gradient_and_state(mode, how, junk):
    x, index, valid = places()
    clean, soiled = SoftmaxGHMC(10, 0.75, *mode), SoftmaxGHMC(10, 0.75, *mode)
    for _ in range(2):
        expected, expected_gradient = value_and_gradient(clean, x[valid], index[valid])
        bad = x.clone()
        bad[~valid] = junk
        # -1 and -100 are what others use; 4 is the number of classes.
        outside = torch.tensor([-1, -100, 4, 255])[torch.arange(60) % 4]
        call = (index, valid) if how == "mask" else (index.where(valid, outside),)
        value, gradient = value_and_gradient(soiled, bad, *call)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[valid], expected_gradient)
        assert gradient[~valid].eq(0).all()
        assert_same_state(soiled, clean)


def test_ignored_probabilities_leave_no_trace():
    x, _, valid = places()
    y = probabilities()
    expected = SoftmaxGHMC()(x[valid], y[valid])
    y[~valid] = math.nan
    torch.testing.assert_close(SoftmaxGHMC()(x, y, valid), expected)


@pytest.mark.parametrize(("rows", "classes"), [(0, 4), (3, 4), (3, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_valid_gives_zero_with_a_live_graph(rows, classes, mode):
    loss = SoftmaxGHMC(10, 0.75, *mode)
    value, gradient = value_and_gradient(loss, torch.full((rows, classes), math.nan), torch.full((rows,), -1))
    assert value.item() == 0
    assert gradient.eq(0).all()
    assert all(part.eq(0).all() for part in loss.state_dict().values())


def test_an_invalid_number_that_counts_spoils_the_value_and_nothing_after_it():
    loss, unspoilt = SoftmaxGHMC(10), SoftmaxGHMC(10)
    for step in range(3):
        x, index, valid = places(step)
        if step == 1:
            x[3, 2], valid[3] = math.nan, True
        masked = valid & x.isfinite().all(1)
        value, gradient = value_and_gradient(loss, x, index, valid)
        expected, expected_gradient = value_and_gradient(unspoilt, x, index, masked)
        assert value.isnan() if step == 1 else torch.equal(value, expected)
        torch.testing.assert_close(gradient[masked], expected_gradient[masked])
        assert_same_state(loss, unspoilt)


# Precision and shapes


def test_a_single_class_is_always_right():
    value, gradient = value_and_gradient(SoftmaxGHMC(), torch.tensor([[3.0], [-2.0]]), torch.tensor([0, 0]))
    assert value == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("mode", MODES)
def test_impossible_classes_may_have_a_logit_of_minus_infinity(mode):
    """Value and gradient are those without the class; it gets none."""
    x, index, valid = places(classes=3)
    barred = torch.cat([x, torch.full((60, 1), -math.inf, dtype=x.dtype)], 1)
    value, gradient = value_and_gradient(SoftmaxGHMC(10, 0.75, *mode), barred, index, valid)
    expected, expected_gradient = value_and_gradient(SoftmaxGHMC(10, 0.75, *mode), x, index, valid)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, :3], expected_gradient)
    assert gradient[:, 3].eq(0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_are_finite(mode, dtype):
    x = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [50.0, 0.0, -50.0]], dtype=dtype)
    value, gradient = value_and_gradient(SoftmaxGHMC(30, 0.0, *mode), x, torch.tensor([0, 1, 2]))
    assert value.isfinite()
    assert gradient.isfinite().all()
    # The hardest outlier, g = 1, takes part.
    assert gradient[1, 1] < 0


@modest
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 300),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    density=st.sampled_from(["regions", "exact"]),
)
def test_rounding_never_leaves_a_place_without_region(seed, classes, scale, density):
    """Summed in float32, g of an outlier may be above 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, classes, generator=generator) * scale
    x[:, 0] += 40.0
    loss = SoftmaxGHMC(10, 0.0, density)
    loss(x, torch.randint(1, classes, (50,), generator=generator))
    assert loss.density.average.counts.sum() == 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_full_precision(dtype):
    x, index, valid = places(dtype=torch.float32)
    x = x.to(dtype)
    value, gradient = value_and_gradient(SoftmaxGHMC(), x, index, valid)
    expected, expected_gradient = value_and_gradient(SoftmaxGHMC(), x.float(), index, valid)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_autocast_computes_the_loss_in_full_precision():
    x, index, valid = places(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = nn.functional.linear(x, torch.eye(4))
        value = SoftmaxGHMC()(logits, index, valid)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(value, SoftmaxGHMC()(logits.float(), index, valid))


@pytest.mark.parametrize("shape", [(3, 20), (3, 4, 5), (1, 2, 2, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_places_of_an_image_are_examples_like_any_other(shape, channels_last):
    x, index, valid = places(shape=shape)
    index[0, 0] = -1
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    rows = x.movedim(1, -1).reshape(-1, 4)
    expected, gradient = value_and_gradient(SoftmaxGHMC(10), rows, index.flatten(), valid.flatten())
    gradient = gradient.view(*shape, 4).movedim(-1, 1)
    torch.testing.assert_close(value_and_gradient(SoftmaxGHMC(10), x, index, valid), (expected, gradient))
    y = F.one_hot(index.clamp(min=0), 4).movedim(-1, 1).double()
    known = valid & (index >= 0)
    torch.testing.assert_close(value_and_gradient(SoftmaxGHMC(10), x, y, known), (expected, gradient))


def test_a_mask_of_images_holds_for_all_their_places():
    x, index, _ = places(shape=(3, 4, 5))
    images = torch.tensor([True, False, True])
    torch.testing.assert_close(SoftmaxGHMC()(x, index, images), SoftmaxGHMC()(x[images], index[images]))


@pytest.mark.parametrize("wide", [torch.uint8, torch.int32])
def test_indices_of_any_whole_type_are_allowed(wide):
    x, index, valid = places()
    assert torch.equal(SoftmaxGHMC()(x, index.to(wide), valid), SoftmaxGHMC()(x, index, valid))


def test_a_saved_average_of_mmdetection_is_taken_here_too():
    loss = SoftmaxGHMC(10)
    loss.load_state_dict({"edges": torch.arange(11) / 10, "acc_sum": torch.arange(10.0)})
    assert torch.equal(loss.density.average.counts, torch.arange(10.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("target", "valid", "message"),
    [
        (torch.zeros(59, dtype=torch.int64), None, r"target of shape \(59,\)"),
        (torch.zeros(60), None, r"target of shape \(60,\) and type torch.float32"),
        (torch.zeros(60, 3), None, r"target of shape \(60, 3\)"),
        (torch.zeros(60, dtype=torch.int64), torch.ones(60), r"valid of shape \(60,\) and type torch.float32"),
        (torch.zeros(60, dtype=torch.int64), torch.ones(59, dtype=torch.bool), r"valid of shape \(59,\)"),
        (torch.zeros(60, dtype=torch.int64), torch.ones(60, 4, dtype=torch.bool), r"valid of shape \(60, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(target, valid, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxGHMC()(places()[0], target, valid)


def test_logits_without_a_dimension_of_classes_are_named():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        SoftmaxGHMC()(torch.zeros(3), torch.zeros(3))


# Cross-entropy


@pytest.mark.parametrize("shape", [(60,), (3, 4, 5)])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_cross_entropy_is_torchs_mean(shape, weight):
    x, index, _ = places(shape=shape)
    value, gradient = value_and_gradient(F.cross_entropy, x, index)
    found = value_and_gradient(SoftmaxCrossEntropy(weight), x, index)
    torch.testing.assert_close(found, (weight * value, weight * gradient))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("how", ["mask", "index", "both"])
def test_cross_entropy_leaves_out_what_is_ignored(how, junk):
    x, index, valid = places()
    expected, expected_gradient = value_and_gradient(F.cross_entropy, x[valid], index[valid])
    x[~valid] = junk
    outside = index.where(valid, torch.tensor([-1, -100, 4, 255])[torch.arange(60) % 4])
    some = valid | (torch.arange(60) % 2 == 0)
    call = {"mask": (index, valid), "index": (outside,), "both": (index.where(some, -1), valid | ~some)}[how]
    value, gradient = value_and_gradient(SoftmaxCrossEntropy(), x, *call)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[valid], expected_gradient)
    assert gradient[~valid].eq(0).all()


@pytest.mark.parametrize(("rows", "classes"), [(0, 4), (3, 4), (3, 1)])
def test_cross_entropy_of_nothing_is_zero_with_a_live_graph(rows, classes):
    value, gradient = value_and_gradient(
        SoftmaxCrossEntropy(), torch.full((rows, classes), math.nan), torch.full((rows,), -1)
    )
    assert value.item() == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_of_half_precision_is_computed_in_full(dtype):
    x, index, valid = places(dtype=torch.float32)
    value, gradient = value_and_gradient(SoftmaxCrossEntropy(), x.to(dtype), index, valid)
    expected, expected_gradient = value_and_gradient(SoftmaxCrossEntropy(), x.to(dtype).float(), index, valid)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_the_gradient_of_cross_entropy_is_that_of_its_value():
    x, index, valid = places(shape=(8,))
    index[0] = -1
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SoftmaxCrossEntropy(2.0)(x, index, valid), x)
    assert torch.autograd.gradgradcheck(lambda x: SoftmaxCrossEntropy(2.0)(x, index, valid), x)


def test_losses_over_a_softmax_say_so():
    assert SoftmaxCrossEntropy().exclusive
    assert SoftmaxGHMC().exclusive
    for loss in (ASL1, CrossEntropy, FocalLoss, GHMC, GHMR, OHEM):
        assert not getattr(loss(), "exclusive", False)
