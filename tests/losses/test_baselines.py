"""The losses that GHM is compared with, against torch's, torchvision's and naive forms of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import ghm.operators  # noqa: F401  (before torchvision)
from ghm.losses import ASL1, OHEM, CrossEntropy, FocalLoss, SmoothL1
from tests.losses.gradient import boxes, classification, value_and_gradient

modest = settings(max_examples=25, deadline=None)

CLASSIFICATION = {"cross_entropy": CrossEntropy, "focal": FocalLoss, "ohem": OHEM}
BOX = {"asl1": ASL1, "smooth_l1": SmoothL1}
ALL = CLASSIFICATION | BOX


def assert_same(got, expected):
    """Values and gradients alike, to double precision."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


# Cross-entropy


def loop_cross_entropy(x, y, valid):
    """The mean of -log p or -log(1 - p) (Eq. 1), one element at a time."""
    losses = []
    for logit, target, counted in zip(
        x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True
    ):
        p = 1 / (1 + math.exp(-logit))
        if counted:
            losses.append(-math.log(p) if target == 1 else -math.log(1 - p))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_the_mean_over_valid_elements(seed):
    """Eq. 1, and torch's."""
    x, y, valid = classification(seed)
    expected = value_and_gradient(lambda x: F.binary_cross_entropy_with_logits(x[valid], y[valid]), x)
    got = value_and_gradient(CrossEntropy(), x, y, valid)
    assert_same(got, expected)
    assert got[0].item() == pytest.approx(loop_cross_entropy(x, y, valid), rel=1e-12)


def test_the_gradient_of_cross_entropy_is_the_probability_less_the_target():
    """Eq. 2."""
    x, y, _ = classification()
    _, gradient = value_and_gradient(CrossEntropy(), x, y)
    torch.testing.assert_close(gradient * x.numel(), x.sigmoid() - y)


def test_cross_entropy_by_level_is_the_sum_of_the_levels_means():
    x, y, valid = classification()
    rows = [len(x) // 2, len(x) - len(x) // 2 - 3, 3]
    parts = zip(x.split(rows), y.split(rows), valid.split(rows), strict=True)
    expected = 20 * sum(loop_cross_entropy(*part) for part in parts)
    loss = CrossEntropy(weight=20.0, scope="level")
    assert loss(x, y, valid, level_sizes=rows).item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"^level_sizes=None: must be the rows of each pyramid level"):
        loss(x, y, valid)


def test_the_papers_cross_entropy_begins_at_around_one():
    """Implementation of the baseline: prior 0.01, weight 20; a mean over all anchors would begin at 0.2."""
    sizes = [1200, 300, 75, 24, 9]
    x = torch.full((sum(sizes), 80), -math.log(99))
    y = torch.zeros_like(x)
    assert CrossEntropy(weight=20.0, scope="level")(x, y, level_sizes=sizes).item() == pytest.approx(1.0, abs=0.01)
    assert CrossEntropy(weight=20.0)(x, y).item() == pytest.approx(0.2, abs=0.01)


# Focal loss


def loop_focal(x, y, valid, gamma, alpha):
    total = positives = 0.0
    for logit, target, counted in zip(
        x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True
    ):
        if counted:
            p = 1 / (1 + math.exp(-logit))
            p_t, alpha_t = (p, alpha) if target else (1 - p, 1 - alpha)
            total -= alpha_t * (1 - p_t) ** gamma * math.log(p_t)
            positives += target
    return total / max(positives, 1)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (0.5, 0.25), (5.0, 0.9), (2.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_focal_loss_equals_its_formula(gamma, alpha, seed):
    x, y, valid = classification(seed)
    value = FocalLoss(gamma, alpha)(x, y, valid)
    assert value.item() == pytest.approx(loop_focal(x, y, valid, gamma, alpha), rel=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.0, 0.75)])
def test_focal_loss_equals_torchvisions(gamma, alpha):
    from torchvision.ops import sigmoid_focal_loss

    def theirs(x):
        summed = sigmoid_focal_loss(x[valid], y[valid], alpha, gamma, reduction="sum")
        return summed / y[valid].sum()

    x, y, valid = classification()
    assert_same(value_and_gradient(FocalLoss(gamma, alpha), x, y, valid), value_and_gradient(theirs, x))


def test_unfocused_focal_loss_is_half_the_summed_cross_entropy():
    x, y, valid = classification()
    summed = F.binary_cross_entropy_with_logits(x[valid], y[valid], reduction="sum")
    value = FocalLoss(gamma=0.0, alpha=0.5)(x, y, valid)
    torch.testing.assert_close(value, summed / 2 / y[valid].sum(), rtol=1e-6, atol=0)


def test_focal_loss_without_positives_is_its_sum():
    x, y, valid = classification(positives=0.0)
    assert FocalLoss()(x, y, valid).item() == pytest.approx(loop_focal(x, y, valid, 2.0, 0.25), rel=1e-6)


@pytest.mark.parametrize(
    "gamma",
    [0.0, 0.5, 1.0, 2.0],
)
def test_focal_loss_of_saturated_logits_has_a_finite_gradient(gamma):
    x = torch.tensor([[1e4, -1e4], [1e4, -1e4], [20.0, -20.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    value, gradient = value_and_gradient(FocalLoss(gamma=gamma), x, y)
    assert value.isfinite()
    assert gradient.isfinite().all()


# OHEM


def naive_ohem(x, y, valid, ratio):
    """All positives and the hardest negatives, by a sorted list; returns sum and number of what is kept."""
    ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    positives = ce[valid & (y > 0)].tolist()
    negatives = sorted(ce[valid & (y == 0)].tolist(), reverse=True)
    kept = positives + negatives[: math.ceil(ratio * max(len(positives), 1))]
    return sum(kept), len(kept)


@modest
@given(
    seed=st.integers(0, 10**6),
    ratio=st.sampled_from([0.5, 1.0, 3.0, 100.0]),
    positives=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_ohem_equals_a_naive_selection(seed, ratio, positives):
    x, y, valid = classification(seed, positives=positives)
    total, count = naive_ohem(x, y, valid, ratio)
    assert OHEM(ratio)(x, y, valid).item() == pytest.approx(total / count, rel=1e-6)


def test_ohem_teaches_nothing_to_the_elements_it_drops():
    x = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]).T
    y = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]).T
    _, gradient = value_and_gradient(OHEM(ratio=2.0), x, y)
    assert gradient.ne(0).flatten().tolist() == [True, True, False, False, True]


def test_ohem_keeps_the_asked_number_among_equally_hard_negatives():
    _, gradient = value_and_gradient(OHEM(ratio=3.0), torch.zeros(10, 2), torch.eye(10, 2))
    assert gradient.ne(0).sum() == 2 + 3 * 2


def naive_examples(x, y, valid, keep, ratio, overlapping):
    """Rows that are kept of one image, hardest first; `overlapping(a, b)`: whether b does not count beside a."""
    ce = F.binary_cross_entropy_with_logits(x, y, reduction="none").where(valid, 0)
    order = [row for row in ce.sum(1).argsort(descending=True).tolist() if valid[row].any()]
    left = []
    for row in order:
        if not any(overlapping(other, row) for other in left):
            left.append(row)
    if ratio is None:
        return left[:keep]
    objects = ((y > 0) & valid).any(1)
    positives = [row for row in left if objects[row]][: max(int(keep / (1 + ratio)), 1)]
    negatives = [row for row in left if not objects[row]]
    return positives + negatives[: keep - len(positives)]


@modest
@given(
    seed=st.integers(0, 10**6),
    keep=st.sampled_from([1, 5, 12, 1000]),
    ratio=st.sampled_from([None, 1.0, 3.0]),
    side=st.sampled_from([0, 3]),
)
def test_ohem_keeps_the_hardest_examples_of_each_image(seed, keep, ratio, side):
    """Lin et al. 2017, section 5.1; examples of a `side` next to each other overlap."""
    images, kept = 2, []
    x, y, valid = classification(seed, positives=0.1)
    rows = len(x) // images
    x, y, valid = x[: images * rows], y[: images * rows], valid[: images * rows]

    def overlapping(a, b):
        return side > 0 and a // side == b // side

    def suppress(hardness):
        alone = torch.zeros_like(hardness, dtype=torch.bool)
        for row, values in zip(alone, hardness, strict=True):
            left = []
            for place in values.argsort(descending=True, stable=True).tolist():
                if not any(overlapping(other, place) for other in left):
                    left.append(place)
            row[left] = True
        return alone

    for image in range(images):
        own = slice(image * rows, (image + 1) * rows)
        kept += [image * rows + row for row in naive_examples(x[own], y[own], valid[own], keep, ratio, overlapping)]
    ce = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    mean = ce[kept][valid[kept]].mean()
    loss = OHEM(ratio, keep=keep, nms=0.5 if side else None)
    value, gradient = value_and_gradient(lambda x: loss(x, y, valid, images, suppress if side else None), x)
    assert value.item() == pytest.approx(mean.item(), rel=1e-9)
    assert sorted(set(gradient.nonzero()[:, 0].tolist())) == sorted(kept)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ratio": None}, "ratio=None: must be negatives a positive"),
        ({"ratio": -1.0}, "ratio=-1.0: must be above 0"),
        ({"keep": 0}, "keep=0: must be a whole number of examples an image"),
        ({"nms": 0.7}, "nms=0.7: must be an IoU in .0, 1. beside keep"),
    ],
)
def test_ohem_names_what_selects_nothing(settings, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        OHEM(**settings)


# Box losses


@pytest.mark.parametrize("mu", [0.02, 0.5])
def test_asl1_equals_its_formula(mu):
    """Eq. 17."""
    x, y, valid = boxes()
    expected = value_and_gradient(lambda x: (((x - y)[valid] ** 2 + mu**2).sqrt() - mu).mean(), x)
    assert_same(value_and_gradient(ASL1(mu), x, y, valid), expected)


def test_the_gradient_of_asl1_lies_between_minus_one_and_one():
    """Eq. 18: d / sqrt(d^2 + mu^2)."""
    d = torch.tensor([[-5.0, -0.02, 0.0, 0.001, 0.02, 5.0]], dtype=torch.float64)
    _, gradient = value_and_gradient(ASL1(0.02), d, torch.zeros_like(d))
    expected = [each / math.sqrt(each**2 + 0.02**2) for each in d.flatten().tolist()]
    assert (gradient * d.numel()).flatten().tolist() == pytest.approx(expected)


def test_asl1_of_a_huge_error_is_finite():
    x = torch.tensor([[1e30, -1e30, 0.0, 1e-30]])
    value, gradient = value_and_gradient(ASL1(), x, torch.zeros_like(x))
    assert value.isfinite()
    torch.testing.assert_close(gradient, torch.tensor([[0.25, -0.25, 0.0, 0.0]]))


@pytest.mark.parametrize("delta", [1 / 9, 1.0])
def test_smooth_l1_equals_its_formula(delta):
    """Eq. 15."""
    x, y, valid = boxes()

    def formula(x):
        d = (x - y)[valid].abs()
        return torch.where(d <= delta, d**2 / (2 * delta), d - delta / 2).mean()

    assert_same(value_and_gradient(SmoothL1(delta), x, y, valid), value_and_gradient(formula, x))
    theirs = value_and_gradient(lambda x: F.smooth_l1_loss(x[valid], y[valid], beta=delta), x)
    assert_same(value_and_gradient(SmoothL1(delta), x, y, valid), theirs)


def test_a_box_has_the_smooth_l1_of_its_four_offsets():
    """Eq. 14: their sum; the loss is the mean, a quarter of it."""
    x, y, _ = boxes(positives=1)
    total = 0.0
    for d in (x - y).abs().flatten().tolist():
        total += d**2 / (2 / 9) if d <= 1 / 9 else d - 1 / 18
    assert SmoothL1()(x, y).item() == pytest.approx(total / 4, rel=1e-12)


def test_the_gradient_of_smooth_l1_is_linear_and_then_constant():
    """Eq. 16: d / delta within delta, the sign of d beyond."""
    d = torch.tensor([[-5.0, -0.5, -0.25, 0.0, 0.1, 0.5, 0.6]], dtype=torch.float64)
    _, gradient = value_and_gradient(SmoothL1(0.5), d, torch.zeros_like(d))
    torch.testing.assert_close((gradient * d.numel()).flatten().tolist(), [-1.0, -1.0, -0.5, 0.0, 0.2, 1.0, 1.0])


# What all share


def inputs_of(name, seed=0, dtype=torch.float64):
    return classification(seed, dtype=dtype) if name in CLASSIFICATION else boxes(seed, dtype=dtype)


@pytest.mark.parametrize("name", ALL)
def test_weight_scales_the_loss(name):
    arguments = inputs_of(name)
    torch.testing.assert_close(ALL[name](weight=20.0)(*arguments), 20 * ALL[name]()(*arguments))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("rows_only", [False, True])
def test_ignored_elements_leave_no_trace(name, rows_only, junk):
    x, y, valid = inputs_of(name)
    if rows_only:
        valid = valid[:, 0]
    expected, expected_gradient = value_and_gradient(ALL[name](), x[valid], y[valid])
    bad_x, bad_y = x.clone(), y.clone()
    bad_x[~valid], bad_y[~valid] = junk, junk
    value, gradient = value_and_gradient(ALL[name](), bad_x, bad_y, valid)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[valid], expected_gradient)
    assert gradient[~valid].eq(0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_valid_gives_zero_with_a_live_graph(name, rows):
    x = torch.full((rows, 4), math.nan, requires_grad=True)
    value = ALL[name]()(x, torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", *BOX])
def test_saturated_input_is_finite(name):
    x = torch.tensor([[1e4, -1e4, 1e4, -1e4]])
    value, gradient = value_and_gradient(ALL[name](), x, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full_precision(name, dtype):
    x, y, valid = inputs_of(name)
    x, y = x.to(dtype), y.to(dtype)
    value, gradient = value_and_gradient(ALL[name](), x, y, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, ALL[name]()(x.float(), y.float(), valid))
    assert gradient.dtype == dtype


@modest
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(ALL)))
def test_the_order_of_rows_does_not_matter(seed, name):
    arguments = inputs_of(name, seed)
    rows = torch.randperm(len(arguments[0]), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ALL[name]()(*(tensor[rows] for tensor in arguments)), ALL[name]()(*arguments))


@pytest.mark.parametrize("name", ALL)
def test_they_remember_nothing(name):
    assert not ALL[name]().state_dict()


@pytest.mark.parametrize("name", ALL)
def test_shapes_that_do_not_fit_are_named(name):
    with pytest.raises(ValueError, match=r"target of shape \(2, 4\) .* must have the input's shape \(3, 4\)"):
        ALL[name]()(torch.zeros(3, 4), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (FocalLoss, "gamma", -1.0),
        (FocalLoss, "gamma", math.nan),
        (FocalLoss, "alpha", -0.1),
        (FocalLoss, "alpha", 1.1),
        (OHEM, "ratio", 0.0),
        (ASL1, "mu", 0.0),
        (SmoothL1, "delta", -1.0),
    ],
)
def test_a_bad_setting_is_named_with_its_value(loss, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        loss(**{name: value})
