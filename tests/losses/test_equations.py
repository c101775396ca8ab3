"""Each equation of the paper as it stands there, in plain numbers, beside the line of code that docs/paper.md names."""

import math

import pytest
import torch

from ghm.losses import ASL1, GHMC, GHMR, CrossEntropy, SmoothL1
from ghm.losses.average import MovingAverage
from ghm.losses.histogram import region_of, sorted_density

P = [0.02, 0.03, 0.04, 0.3, 0.31, 0.9, 0.97]  # probabilities
LABEL = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
G = [abs(p - label) for p, label in zip(P, LABEL, strict=True)]
D = [-0.5, -0.03, 0.0, 0.001, 0.02, 0.111, 0.112, 2.0]
M, EPSILON, MU, DELTA = 10, 0.1, 0.02, 1 / 9


def column(values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


X, Y = column([math.log(p / (1 - p)) for p in P]), column(LABEL)


def value_and_gradient(loss, x, y):
    x = x.clone().requires_grad_()
    value = loss(x, y)
    value.backward()
    return value.item(), x.grad.flatten().tolist()


def ce(p, label):
    return -math.log(p) if label == 1 else -math.log(1 - p)


def density(g):
    """Eq. 4 by Eq. 5 and 6."""
    near = sum(g - EPSILON / 2 <= k < g + EPSILON / 2 for k in G)
    return near / (min(g + EPSILON / 2, 1) - max(g - EPSILON / 2, 0))


def region(g):
    return min(int(g * M + 1e-9), M - 1)


def held(g, values=G):
    """R_ind(g)."""
    return sum(region(k) == region(g) for k in values)


def asl1(d):
    return math.sqrt(d * d + MU * MU) - MU


def gr(d):
    return abs(d) / math.sqrt(d * d + MU * MU)


def sl1(d):
    return d * d / (2 * DELTA) if abs(d) <= DELTA else abs(d) - DELTA / 2


def test_equation_1_cross_entropy():
    value, _ = value_and_gradient(CrossEntropy(), X, Y)
    assert value == pytest.approx(sum(map(ce, P, LABEL)) / len(P))


def test_equation_2_its_gradient():
    _, gradient = value_and_gradient(CrossEntropy(), X, Y)
    assert [len(P) * part for part in gradient] == pytest.approx([p - label for p, label in zip(P, LABEL, strict=True)])


def test_equation_3_gradient_norm():
    """The regions in which GHM-C counts are those of g."""
    loss = GHMC(M, 0.75)
    loss(X, Y)
    expected = [0.25 * sum(region(g) == j for g in G) for j in range(M)]
    assert loss.density.average.counts.tolist() == pytest.approx(expected)


def test_equations_4_to_6_gradient_density():
    g = torch.tensor(G, dtype=torch.float64)
    found = sorted_density(g, torch.ones_like(g, dtype=torch.bool), M)
    assert found.tolist() == pytest.approx([density(k) for k in G])


def test_equation_7_harmonizing_parameter():
    beta = len(G) * GHMC(M, density="exact").density(torch.tensor(G, dtype=torch.float64))
    assert beta.tolist() == pytest.approx([len(G) / density(g) for g in G])


def test_equation_8_ghm_c_by_the_exact_density():
    value, gradient = value_and_gradient(GHMC(M, density="exact"), X, Y)
    assert value == pytest.approx(sum(ce(p, label) / density(g) for p, label, g in zip(P, LABEL, G, strict=True)))
    assert list(map(abs, gradient)) == pytest.approx([g / density(g) for g in G])


def test_equation_9_unit_regions():
    assert region_of(torch.tensor(G, dtype=torch.float64), M, None).tolist() == [region(g) for g in G]


def test_equation_10_harmonizing_parameter_of_unit_regions():
    beta = len(G) * GHMC(M, 0.0, normalize="all").density(torch.tensor(G, dtype=torch.float64))
    assert beta.tolist() == pytest.approx([len(G) / (held(g) * M) for g in G])


def test_equation_11_ghm_c():
    value, _ = value_and_gradient(GHMC(M, 0.0, normalize="all"), X, Y)
    assert value == pytest.approx(sum(ce(p, label) / (held(g) * M) for p, label, g in zip(P, LABEL, G, strict=True)))


def test_equation_12_moving_average():
    average = MovingAverage(2, 0.75, False, "decay", 1, "error")
    s = [0.0, 0.0]
    for counts in ([4, 0], [2, 6], [0, 8]):
        average(torch.tensor(counts))
        s = [0.75 * before + 0.25 * now for before, now in zip(s, counts, strict=True)]
        assert average.counts.tolist() == pytest.approx(s)


def test_equation_13_density_of_the_moving_average():
    loss = GHMC(M, 0.75, normalize="all", bias_correction=False)
    g = torch.tensor(G, dtype=torch.float64)
    loss.density(g)
    beta = len(G) * loss.density(g)
    twice = 0.75 * 0.25 + 0.25  # of the same counts, from S = 0
    assert beta.tolist() == pytest.approx([len(G) / (twice * held(k) * M) for k in G])


def test_equation_14_sums_over_the_four_coordinates():
    """The presets' weight of 4 makes a mean over coordinates the mean over boxes of their sum."""
    offsets = torch.tensor([D[:4], D[4:]], dtype=torch.float64)
    value = SmoothL1(DELTA, weight=4.0)(offsets, torch.zeros_like(offsets))
    assert value.item() == pytest.approx(sum(map(sl1, D)) / 2)


def test_equation_15_smooth_l1():
    value, _ = value_and_gradient(SmoothL1(DELTA), column(D), column([0.0] * len(D)))
    assert value == pytest.approx(sum(map(sl1, D)) / len(D))


def test_equation_16_its_gradient():
    _, gradient = value_and_gradient(SmoothL1(DELTA), column(D), column([0.0] * len(D)))
    expected = [d / DELTA if abs(d) <= DELTA else math.copysign(1, d) for d in D]
    assert [len(D) * part for part in gradient] == pytest.approx(expected)


def test_equation_17_authentic_smooth_l1():
    value, _ = value_and_gradient(ASL1(MU), column(D), column([0.0] * len(D)))
    assert value == pytest.approx(sum(map(asl1, D)) / len(D))


def test_equation_18_its_gradient():
    _, gradient = value_and_gradient(ASL1(MU), column(D), column([0.0] * len(D)))
    assert [len(D) * part for part in gradient] == pytest.approx([d / math.sqrt(d * d + MU * MU) for d in D])


def test_equation_19_ghm_r():
    norms = [gr(d) for d in D]
    value, _ = value_and_gradient(GHMR(MU, M, 0.0, normalize="all"), column(D), column([0.0] * len(D)))
    assert value == pytest.approx(sum(asl1(d) / (held(gr(d), norms) * M) for d in D))
