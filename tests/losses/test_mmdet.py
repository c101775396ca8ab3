"""The parity setting against a slow reading of mmdetection 3.3.0's GHMC and GHMR (reference/ghm.md, 1.2)."""

import math

import pytest
import torch
from torch import nn

from ghm.losses import GHMC, GHMR, MMDET
from tests.losses.gradient import value_and_gradient
from tests.losses.test_ghm_c import VALID, X, Y

LEVELS = [64, 16, 8, 4, 1]
MU = 0.02


class Reference:
    """One call a level, one acc_sum, in plain floats: weight tot / S_b over n, the sum divided by tot."""

    def __init__(self, bins, momentum, last_edge):
        self.bins, self.momentum = bins, momentum
        self.edges = [b / bins for b in range(bins)] + [last_edge]
        self.acc_sum = [0.0] * bins

    def __call__(self, norms, losses, slopes, valid):
        """Value, and gradient for each element, from |g|, l, dl/dx and the mask."""
        total, occupied, weights = max(sum(valid), 1), 0, [0.0] * len(norms)
        for b in range(self.bins):
            inside = [i for i, g in enumerate(norms) if valid[i] and self.edges[b] <= g < self.edges[b + 1]]
            if inside:
                occupied += 1
                density = float(len(inside))
                if self.momentum > 0:
                    density = self.momentum * self.acc_sum[b] + (1 - self.momentum) * density
                    self.acc_sum[b] = density
                for i in inside:
                    weights[i] = total / density
        weights = [weight / max(occupied, 1) / total for weight in weights]
        value = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return value, [weight * slope for weight, slope in zip(weights, slopes, strict=True)]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def of_classification(x, y):
    """g, CE and dCE/dx (Eq. 1-3)."""
    return abs(sigmoid(x) - y), max(x, 0) - x * y + math.log1p(math.exp(-abs(x))), sigmoid(x) - y


def of_boxes(x, y):
    """gr, ASL1 and dASL1/dx (Eq. 17, 18)."""
    root = math.sqrt((x - y) ** 2 + MU**2)
    return abs(x - y) / root, root - MU, (x - y) / root


def iteration(seed, width, scale=1.0):
    rows = sum(LEVELS)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 2 - 1
    y = (torch.rand(x.shape, generator=generator) < 0.1).double()
    return x * scale, y * scale, torch.rand(rows, generator=generator) < 0.8


def slowly(reference, elements, x, y, valid):
    """The sum over the levels, in turn, and the gradient."""
    value, gradient = 0.0, []
    for rows in zip(*(part.split(LEVELS) for part in (x, y, valid)), strict=True):
        pairs = zip(*(part.flatten().tolist() for part in rows[:2]), strict=True)
        norms, losses, slopes = zip(*(elements(*pair) for pair in pairs), strict=True)
        mask = rows[2][:, None].expand_as(rows[0]).flatten().tolist()
        level, part = reference(norms, losses, slopes, mask)
        value += level
        gradient += part
    return value, gradient


def assert_alike(ours, reference, elements, batch, weight):
    value, gradient = value_and_gradient(ours, *batch, level_sizes=LEVELS)
    wanted, wanted_gradient = slowly(reference, elements, *batch)
    assert value.item() == pytest.approx(weight * wanted, rel=1e-9)
    torch.testing.assert_close(gradient.flatten() / weight, torch.tensor(wanted_gradient, dtype=torch.float64))
    if reference.momentum:
        assert ours.density.average.counts.tolist() == pytest.approx(reference.acc_sum, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("bins", [10, 30])
def test_ghm_c_follows_it_over_a_hundred_iterations_of_five_levels(bins, momentum):
    reference, ours = Reference(bins, momentum, 1 + 1e-6), GHMC(bins, momentum, weight=2.0, **MMDET)
    for seed in range(100):
        assert_alike(ours, reference, of_classification, iteration(seed, width=3), 2.0)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_ghm_r_follows_it_over_a_hundred_iterations_of_five_levels(momentum):
    reference, ours = Reference(10, momentum, 1e3), GHMR(MU, 10, momentum, weight=10.0, **MMDET)
    for seed in range(100):
        assert_alike(ours, reference, of_boxes, iteration(seed, width=4, scale=0.02), 10.0)


@pytest.mark.parametrize(
    ("flipped", "options"),
    [
        ("bias_correction", {"bias_correction": True, "emptied": "decay"}),
        ("emptied", {"emptied": "decay"}),
        ("scope", {"scope": "level"}),
        ("scope", {"scope": "pooled"}),
    ],
)
def test_every_part_of_the_setting_shows(flipped, options):
    """But for `counts`, which takes several processes: test_distributed.py."""
    assert MMDET[flipped] != options[flipped]
    parity, other = GHMC(30, 0.75, **MMDET), GHMC(30, 0.75, **MMDET | options)
    for seed in range(5):
        batch = iteration(seed, width=3)
        ours, theirs = (loss(*batch, level_sizes=LEVELS).item() for loss in (parity, other))
    assert not math.isclose(ours, theirs, rel_tol=1e-3)


def test_golden_numbers_of_ghm_c():
    """Measured on mmdetection 3.3.0, the same batch three times: reference/ghm.md, 1.6."""
    loss = GHMC(10, 0.75, **MMDET)
    values = [loss(X, Y, VALID, level_sizes=[3]).item() for _ in range(3)]
    assert values == pytest.approx([3.18480308, 1.81988752, 1.37721223], abs=1e-7)
    acc_sum = [0.578125 if region in (0, 1, 2, 3, 9) else 0.0 for region in range(10)]
    assert loss.density.average.counts.tolist() == acc_sum


def test_golden_numbers_of_each_element():
    """What its reduction='none' gives: N times our weights, times the cross-entropy."""
    weights = 5 * GHMC(10, 0.0, **MMDET).weights(X.sigmoid() - Y, ~VALID, [3])
    ce = nn.functional.binary_cross_entropy_with_logits(X, Y, reduction="none")
    expected = torch.tensor([[0.0181499, 0.1269280], [0.4740770, 0.3132617], [3.0485873, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(weights * ce, expected, rtol=0, atol=1e-7)


def test_golden_numbers_of_ghm_r():
    x = torch.tensor([[0.0, 0.01, -0.02, 0.5]], dtype=torch.float64)
    loss = GHMR(MU, 10, 0.7, weight=10.0, **MMDET)
    values = [loss(x, torch.zeros_like(x), level_sizes=[1]).item() for _ in range(3)]
    assert values == pytest.approx([4.09203971, 2.40708224, 1.86851137], rel=1e-7)


@pytest.mark.parametrize(
    ("momentum", "scales"), [(0.75, [2.73, 0.74, 0.23, 0.076, 0.025]), (0.7, [2.54, 0.71, 0.24, 0.08, 0.03])]
)
def test_at_rest_the_shared_average_swells_the_finest_level_and_starves_the_coarsest(momentum, scales):
    """Levels of 1, 1/4, .. 1/256 of the anchors, all alike: the gradient of each against that of its own density."""
    sizes = [256, 64, 16, 4, 1]
    x, loss = torch.zeros(sum(sizes), 1), GHMC(1, momentum, **MMDET)
    for _ in range(100):
        _, gradient = value_and_gradient(loss, x, torch.zeros_like(x), level_sizes=sizes)
    # By itself, each level would have the gradient of a single element, p - y = 1/2.
    got = [part.sum().item() / 0.5 for part in gradient.split(sizes)]
    assert got == pytest.approx(scales, abs=0.005)


# Its checkpoints


def saved(reference, prefix=""):
    edges = torch.arange(reference.bins + 1).float() / reference.bins
    edges[-1] += 1e-6
    state = {f"{prefix}edges": edges}
    if reference.momentum > 0:
        state[f"{prefix}acc_sum"] = torch.tensor(reference.acc_sum)
    return state


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_a_saved_average_continues_as_it_would_have_there(momentum):
    reference = Reference(10, momentum, 1 + 1e-6)
    for seed in range(5):
        slowly(reference, of_classification, *iteration(seed, width=3))
    ours = GHMC(10, momentum, **MMDET)
    ours.load_state_dict(saved(reference))
    for seed in range(5, 8):
        batch = iteration(seed, width=3)
        # float32, as it was saved
        assert ours(*batch, level_sizes=LEVELS).item() == pytest.approx(
            slowly(reference, of_classification, *batch)[0], rel=1e-6
        )


@pytest.mark.parametrize("prefix", ["loss.", "head.loss."])
def test_a_saved_average_is_found_inside_a_detector(prefix):
    reference = Reference(10, 0.75, 1 + 1e-6)
    slowly(reference, of_classification, *iteration(0, width=3))
    model = nn.ModuleDict({"loss": GHMC(10, 0.75, **MMDET), "layer": nn.Linear(2, 2)})
    if prefix == "head.loss.":
        model = nn.ModuleDict({"head": model})
    layers = {name: part for name, part in model.state_dict().items() if "layer" in name}
    state = saved(reference, prefix) | layers
    before = dict(state)
    model.load_state_dict(state)  # strictly: no key is missing, none is left over
    assert state.keys() == before.keys()
    (loss,) = (part for part in model.modules() if isinstance(part, GHMC))
    assert loss.density.average.counts.tolist() == pytest.approx(reference.acc_sum)


def test_a_saved_average_is_no_beginning():
    """It is of unknown age: neither divided by 1 - alpha^t nor warmed up."""
    loss = GHMC(1, 0.75, strength_warmup=1000)
    loss.load_state_dict({"edges": torch.tensor([0.0, 1.0]), "acc_sum": torch.tensor([40.0])})
    g = torch.zeros(80, dtype=torch.float64)
    torch.testing.assert_close(loss.density(g), torch.full_like(g, 1 / (0.75 * 40 + 0.25 * 80)))
    loss = GHMC(10, 0.75, strength_warmup=1000)
    loss.load_state_dict(saved(Reference(10, 0.75, 1.0)))
    x, y, valid = iteration(0, width=3)
    assert loss(x, y, valid) > 1.5 * GHMC(10, 0.0, strength=0.0)(x, y, valid)


def test_a_saved_loss_without_an_average_starts_one():
    """With momentum 0 mmdetection saves only edges."""
    loss = GHMC(10, 0.75)
    loss(*iteration(0, width=3))
    loss.load_state_dict(saved(Reference(10, 0.0, 1.0)))
    batch = iteration(1, width=3)
    assert torch.equal(loss(*batch), GHMC(10, 0.75)(*batch))


def test_a_saved_average_of_other_regions_is_named_or_forgotten():
    reference = Reference(10, 0.75, 1.0)
    reference.acc_sum = [5.0] * 10
    for momentum in (0.0, 0.75):
        reference.momentum = momentum
        with pytest.raises(ValueError, match=r"bins=30: .* 10 regions; set bins=10"):
            GHMC(30, 0.75, **MMDET).load_state_dict(saved(reference))
        loss = GHMC(30, 0.75, **MMDET, new_bins="reset")
        loss.load_state_dict(saved(reference))
        assert all(part.eq(0).all() for part in loss.state_dict().values())


def test_ghm_r_loads_its_average_too():
    reference = Reference(10, 0.7, 1e3)
    reference.acc_sum = [float(region) for region in range(10)]
    loss = GHMR(MU, 10, 0.7, **MMDET)
    loss.load_state_dict(saved(reference))
    assert loss.density.average.counts.tolist() == reference.acc_sum
