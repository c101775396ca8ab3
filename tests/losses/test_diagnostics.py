"""Where losses put their gradient, against loops over elements."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ghm.losses import (
    ASL1,
    GHMC,
    GHMR,
    OHEM,
    CrossEntropy,
    FocalLoss,
    SmoothL1,
    diagnose,
    diagnose_boxes,
)
from tests.losses.gradient import boxes, classification, state_of, value_and_gradient


def loop(elements, bins):
    """Diagnostics of elements (g, |gradient|, plain loss), in plain floats."""
    counts, magnitude, norms = [0] * bins, [0.0] * bins, [0.0] * bins
    for g, gradient, _ in elements:
        region = min(int(g * bins), bins - 1)
        counts[region] += 1
        magnitude[region] += gradient
        norms[region] += g
    # The plain mean loss gives each element g / N.
    weights = [len(elements) * part / norm if part else 0.0 for part, norm in zip(magnitude, norms, strict=True)]
    return SimpleNamespace(
        counts=torch.tensor(counts),
        weights=torch.tensor(weights, dtype=torch.float64),
        gradient_share=torch.tensor([part / sum(magnitude) for part in magnitude], dtype=torch.float64),
        plain=torch.tensor(sum(plain for _, _, plain in elements) / len(elements), dtype=torch.float64),
        occupied=torch.tensor(sum(count > 0 for count in counts)),
    )


NAMES = ("counts", "weights", "gradient_share", "plain", "occupied")


def assert_same(got, expected):
    for name in NAMES:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def valid_pairs(x, y, valid):
    flat = zip(x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True)
    return [(a, b) for a, b, counted in flat if counted]


def cross_entropy(x, y):
    return -math.log(sigmoid(x) if y else 1 - sigmoid(x))


# The gradient that each classification loss gives to each of the valid (logit, target).


def of_cross_entropy(pairs, weight):
    return [weight * abs(sigmoid(x) - y) / len(pairs) for x, y in pairs]


def of_focal(pairs, gamma, alpha):
    """alpha_t (1 - p_t)^gamma (gamma p_t log p_t - (1 - p_t)), over the positives."""
    gradients, positives = [], sum(y for _, y in pairs)
    for x, y in pairs:
        p_t, alpha_t = (sigmoid(x), alpha) if y else (1 - sigmoid(x), 1 - alpha)
        gradients.append(abs(alpha_t * (1 - p_t) ** gamma * (gamma * p_t * math.log(p_t) - (1 - p_t))) / positives)
    return gradients


def of_ohem(pairs, ratio):
    negatives = sorted((cross_entropy(x, y) for x, y in pairs if not y), reverse=True)
    positives = sum(y > 0 for _, y in pairs)
    number = math.ceil(ratio * positives)
    hard = negatives[number - 1] if number <= len(negatives) else 0.0
    kept = [bool(y) or cross_entropy(x, y) >= hard for x, y in pairs]
    return [abs(sigmoid(x) - y) * keep / sum(kept) for (x, y), keep in zip(pairs, kept, strict=True)]


def of_ghm(pairs, bins, norm, weight):
    """1 / (n R_j) of the norm; n regions hold examples."""
    regions = [min(int(norm(*pair) * bins), bins - 1) for pair in pairs]
    occupied = len(set(regions))
    return [
        weight * norm(*pair) / regions.count(region) / occupied for pair, region in zip(pairs, regions, strict=True)
    ]


def residual(x, y):
    return abs(sigmoid(x) - y)


CLASSIFICATION = {
    "cross_entropy": (partial(CrossEntropy, weight=20.0), partial(of_cross_entropy, weight=20.0)),
    "focal": (FocalLoss, partial(of_focal, gamma=2.0, alpha=0.25)),
    "ohem": (OHEM, partial(of_ohem, ratio=3.0)),
    "ghm_c": (
        partial(GHMC, 10, 0.0, weight=2.0),
        partial(of_ghm, bins=10, norm=residual, weight=2.0),
    ),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("bins", [1, 4, 10, 30])
@pytest.mark.parametrize("seed", range(2))
def test_classification_equals_a_loop(name, bins, seed):
    """g of Eq. 3."""
    make, gradients = CLASSIFICATION[name]
    x, y, valid = classification(seed)
    pairs = valid_pairs(x, y, valid)
    elements = [
        (residual(*pair), gradient, cross_entropy(*pair))
        for pair, gradient in zip(pairs, gradients(pairs), strict=True)
    ]
    assert_same(diagnose(make(), x, y, valid, bins=bins), loop(elements, bins))


MU = 0.05


def box_norm(x, y):
    return abs(x - y) / math.sqrt((x - y) ** 2 + MU**2)


BOXES = {
    "asl1": (partial(ASL1, MU, weight=3.0), lambda pairs: [3 * box_norm(*pair) / len(pairs) for pair in pairs]),
    "smooth_l1": (
        partial(SmoothL1, 0.1),
        lambda pairs: [min(abs(x - y) / 0.1, 1.0) / len(pairs) for x, y in pairs],
    ),
    "ghm_r": (partial(GHMR, MU, 10, 0.0), partial(of_ghm, bins=10, norm=box_norm, weight=1.0)),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("bins", [4, 10])
def test_boxes_equal_a_loop(name, bins):
    """gr of Eq. 18, ASL1 of Eq. 17."""
    make, gradients = BOXES[name]
    x, y, valid = boxes()
    pairs = valid_pairs(x, y, valid)
    elements = [
        (box_norm(*pair), gradient, math.sqrt((pair[0] - pair[1]) ** 2 + MU**2) - MU)
        for pair, gradient in zip(pairs, gradients(pairs), strict=True)
    ]
    assert_same(diagnose_boxes(make(), x, y, valid, bins=bins, mu=MU), loop(elements, bins))


def test_the_weights_of_ghm_c_are_those_of_its_density():
    """beta_j times the loss's weight, also with an average that has a history."""
    x, y, valid = classification()
    loss = GHMC(10, 0.75, weight=3.0)
    loss(*classification(1))
    loss.eval()
    g = (x.sigmoid() - y).abs()
    beta = loss.density(g, ~valid) * valid.sum()
    seen = diagnose(loss, x, y, valid, bins=10)
    for region in range(10):
        inside = valid & (g * 10).long().eq(region)
        expected = 3 * beta[inside][0] if inside.any() else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(seen.weights[region], expected)


def test_the_weights_of_cross_entropy_are_its_own_wherever_there_are_examples():
    seen = diagnose(CrossEntropy(weight=20.0), *classification(), bins=30)
    torch.testing.assert_close(seen.weights, 20.0 * (seen.counts > 0).double())


def test_the_defaults_are_the_papers_regions():
    assert len(diagnose(GHMC(), *classification()).counts) == 30
    assert len(diagnose_boxes(GHMR(), *boxes()).counts) == 10
    default, written_out = (diagnose_boxes(GHMR(), *boxes(), **given) for given in ({}, {"bins": 10, "mu": 0.02}))
    assert_same(default, written_out)


def test_shares_of_ghm_c_are_even_but_for_the_norm():
    """Harmony: each region's share is its mean norm, whatever its crowd."""
    x, y, _ = classification(anchors=2000)
    seen = diagnose(GHMC(10, 0.0), x, y, bins=10)
    middle = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    torch.testing.assert_close(seen.gradient_share, middle / middle.sum(), rtol=0, atol=0.01)
    assert seen.counts.max() > 5 * seen.counts.min()


# What it is given


def test_class_indices_and_masks_of_places_are_taken():
    x, _, valid = classification()
    index = torch.randint(-1, 4, (40,), generator=torch.Generator().manual_seed(0))
    one_hot = torch.stack([index == label for label in range(3)], 1).double()
    expected = diagnose(GHMC(10), x, one_hot, valid[:, :1].expand_as(x))
    assert_same(diagnose(GHMC(10), x, index, valid[:, 0]), expected)


@pytest.mark.parametrize("make", [GHMC, FocalLoss])
def test_images_and_single_precision_are_taken(make):
    x, y, valid = (part.view(2, 3, 4, 5) for part in classification(dtype=torch.float32))
    expected = diagnose(make(), *(part.flatten()[:, None].double() for part in (x, y)), valid.flatten())
    got = diagnose(make(), x, y, valid)
    torch.testing.assert_close(vars(got), vars(expected), check_dtype=False, rtol=1e-4, atol=1e-5)


def test_levels_are_passed_on():
    loss = GHMC(10, 0.0, scope="level")
    x, y, valid = classification()
    seen = diagnose(loss, x, y, valid, level_sizes=[30, 10])
    _, gradient = value_and_gradient(loss.eval(), x, y, valid, level_sizes=[30, 10])
    g = (x.sigmoid() - y).abs()
    inside = valid & (g < 1 / 30)
    torch.testing.assert_close(seen.weights[0], gradient[inside].abs().sum() / g[inside].sum() * valid.sum())
    with pytest.raises(ValueError, match="level_sizes"):
        diagnose(loss, x, y, valid)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_invalid_numbers_are_left_out(junk):
    x, y, valid = classification()
    bad, mask = x.clone(), valid.clone()
    bad[:5], mask[:5] = junk, False
    assert_same(diagnose(GHMC(10), bad, y, mask), diagnose(GHMC(10), x[5:], y[5:], valid[5:]))
    # Where they count, they are in no region.
    mask[:5] = True
    y[:5] = math.nan
    assert_same(diagnose(GHMC(10), bad, y, mask), diagnose(GHMC(10), x[5:], y[5:], mask[5:]))


@pytest.mark.parametrize(("make", "look"), [(GHMC, diagnose), (OHEM, diagnose), (GHMR, diagnose_boxes)])
@pytest.mark.parametrize("rows", [0, 3])
def test_of_nothing_everything_is_zero(make, look, rows):
    seen = look(make(), torch.zeros(rows, 4), torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.bool))
    assert all(part.eq(0).all() for part in vars(seen).values())


def test_saturated_logits_are_in_the_last_region():
    seen = diagnose(GHMC(10), torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]]), bins=10)
    assert seen.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert seen.gradient_share.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]


# What it leaves


class Wrapped(nn.Module):
    """A loss in a module, part of which is in evaluation mode, that may fail."""

    def __init__(self):
        super().__init__()
        self.inner, self.frozen = GHMC(10, strength_warmup=3), nn.Dropout()
        self.frozen.eval()

    def forward(self, x, y, valid):
        assert not self.inner.training
        return self.inner(x, y, valid)


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_stays_as_it_was(training):
    loss, untouched = GHMC(10, strength_warmup=3), GHMC(10, strength_warmup=3)
    for step in range(3):
        loss(*classification(step))
        untouched(*classification(step))
    loss.train(training)
    before = state_of(loss)
    diagnose(loss, *classification(7))
    assert all(torch.equal(part, before[name]) for name, part in loss.state_dict().items())
    assert all(module.training == training for module in loss.modules())
    assert torch.equal(loss.train()(*classification(5)), untouched(*classification(5)))


def test_modes_are_restored_one_by_one_also_after_an_error():
    loss = Wrapped()
    diagnose(loss, *classification())
    assert (loss.training, loss.inner.training, loss.frozen.training) == (True, True, False)
    with pytest.raises(TypeError):
        diagnose(loss, *classification(), level_sizes=[40])
    assert (loss.training, loss.inner.training, loss.frozen.training) == (True, True, False)


def test_the_batch_stays_as_it_was():
    x, y, valid = classification()
    before = x.clone()
    x.requires_grad_()
    seen = diagnose(GHMC(10), x, y, valid)
    assert x.grad is None
    assert torch.equal(x, before)
    assert not any(part.requires_grad for part in vars(seen).values())
    plain = before.clone()
    diagnose(GHMC(10), plain, y)
    assert not plain.requires_grad


def test_it_works_without_gradients_around_it():
    with torch.no_grad():
        seen = diagnose(GHMC(10), *classification())
        assert not torch.is_grad_enabled()
    assert_same(seen, diagnose(GHMC(10), *classification()))


def test_shapes_that_do_not_fit_are_named():
    x, y, valid = classification()
    with pytest.raises(ValueError, match="target of shape"):
        diagnose(GHMC(), x, y[1:], valid)
    with pytest.raises(ValueError, match="valid of shape"):
        diagnose_boxes(ASL1(), x, y, valid[1:])


def test_batches_are_added():
    """As if one loss had seen both, where it is a sum."""
    x, y, valid = classification()
    half = len(x) // 2

    class Summed(nn.Module):
        def forward(self, x, y, valid):
            return CrossEntropy()(x, y, valid) * valid.sum()

    one, other = (diagnose(Summed(), x[part], y[part], valid[part]) for part in (slice(half), slice(half, None)))
    both = diagnose(Summed(), x, y, valid)
    assert_same(one + other, both)


def test_evenness_is_one_where_every_region_has_the_same_gradient():
    g = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    x, y = (g / (1 - g)).log()[:, None], torch.zeros(10, 1, dtype=torch.float64)
    assert diagnose(CrossEntropy(), torch.ones_like(x), y, bins=10).evenness.item() == 0  # all in one region
    share = g / g.sum()
    expected = -(share * share.log()).sum().item() / math.log(10)
    assert diagnose(CrossEntropy(), x, y, bins=10).evenness.item() == pytest.approx(expected)
