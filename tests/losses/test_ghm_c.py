"""GHM-C against the golden numbers, against loops over the paper's equations, and on the worst of inputs."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.losses import GHMC, GHMR
from tests.losses.gradient import value_and_gradient

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
MODES = [("regions", "occupied"), ("regions", "all"), ("exact", "occupied")]


def case(seed=0, anchors=40, classes=3, dtype=torch.float64):
    """Logits, targets and a mask as a detector makes them: nearly all negative and easy."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(anchors, classes, generator=generator) < 0.1).to(dtype)
    x = torch.randn(anchors, classes, generator=generator, dtype=dtype) * 2 - 2
    return x, y, torch.rand(anchors, classes, generator=generator) < 0.8


def loop_loss(x, y, valid, bins, normalize):
    """(1 / M) sum_j (1 / R_j) sum_{i in j} CE_i (Eq. 11), with n for M where asked; plain floats."""
    regions = {}
    for logit, target, counted in zip(
        x.flatten().tolist(), y.flatten().tolist(), valid.flatten().tolist(), strict=True
    ):
        if counted:
            p = 1 / (1 + math.exp(-logit))
            region = min(int(abs(p - target) * bins), bins - 1)
            ce = -target * math.log(p) - (1 - target) * math.log(1 - p)
            regions.setdefault(region, []).append(ce)
    means = [sum(losses) / len(losses) for losses in regions.values()]
    return sum(means) / (len(means) if normalize == "occupied" else bins)


# Value


@pytest.mark.parametrize("bins", GOLDEN)
@pytest.mark.parametrize("mode", range(3))
def test_golden_numbers(bins, mode):
    density, normalize = MODES[mode]
    loss = GHMC(bins=bins, momentum=0.0, density=density, normalize=normalize)
    assert loss(X, Y, VALID).item() == pytest.approx(GOLDEN[bins][mode], abs=1e-7)


def test_the_defaults_are_the_papers():
    written_out = GHMC(30, 0.75, "regions", "occupied", strength=1.0, strength_warmup=0, weight=1.0)
    default = GHMC()
    for seed in range(3):
        assert torch.equal(default(*case(seed)), written_out(*case(seed)))


@pytest.mark.parametrize("normalize", ["occupied", "all"])
@pytest.mark.parametrize("bins", [1, 3, 10, 30, 40])
@pytest.mark.parametrize("seed", range(4))
def test_value_equals_a_loop_over_regions(bins, normalize, seed):
    x, y, valid = case(seed)
    value = GHMC(bins=bins, momentum=0.0, normalize=normalize)(x, y, valid)
    assert value.item() == pytest.approx(loop_loss(x, y, valid, bins, normalize), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("normalize", ["occupied", "all"])
def test_one_region_in_all_is_plain_cross_entropy(momentum, normalize):
    loss = GHMC(bins=1, momentum=momentum, normalize=normalize)
    for seed in range(3):
        # The same number of examples each time: where it varies, the average lags behind it (Eq. 13).
        x, y, _ = case(seed)
        torch.testing.assert_close(loss(x, y), F.binary_cross_entropy_with_logits(x, y), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bins", [2, 10, 30])
def test_one_occupied_region_is_plain_cross_entropy(bins):
    # All norms lie in the second region from the top, at slightly different places.
    g = 1 - (1 + torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) / bins
    g = g.clamp(min=1e-3)
    y = torch.zeros_like(g)
    value = GHMC(bins=bins, momentum=0.0)(g.logit(), y)
    torch.testing.assert_close(value, F.binary_cross_entropy(g, y), rtol=1e-6, atol=0)


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES), bins=st.integers(1, 40))
def test_the_order_of_anchors_and_classes_does_not_matter(seed, mode, bins):
    x, y, valid = case(seed)
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
    x, y, valid = case(seed)
    once = GHMC(10, 0.0, *mode)(x, y, valid)
    repeated = GHMC(10, 0.0, *mode)(*(tensor.repeat(times, 1) for tensor in (x, y, valid)))
    torch.testing.assert_close(repeated, once)


@modest
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(MODES))
def test_swapping_the_two_classes_of_a_binary_problem_changes_nothing(seed, mode):
    x, y, valid = case(seed)
    torch.testing.assert_close(GHMC(10, 0.0, *mode)(-x, 1 - y, valid), GHMC(10, 0.0, *mode)(x, y, valid))


def test_soft_targets_are_allowed():
    x, _, valid = case()
    y = torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    value = GHMC(bins=10, momentum=0.0)(x, y, valid)
    assert value.item() == pytest.approx(loop_loss(x, y, valid, 10, "occupied"), rel=1e-6)


def test_weight_scales_the_loss():
    torch.testing.assert_close(GHMC(weight=2.5)(X, Y, VALID), 2.5 * GHMC()(X, Y, VALID))


def test_integer_targets_equal_float_ones():
    assert torch.equal(GHMC()(X, Y.long(), VALID), GHMC()(X, Y, VALID))


# Gradient


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_treats_weights_as_constants(mode):
    """dL/dx_i = beta_i / N (p_i - y_i): beta depends on x but must not be differentiated (Eq. 8)."""
    x, y, valid = case()
    loss = GHMC(10, 0.0, *mode)
    beta = loss.density((x.sigmoid() - y).abs(), valid)
    _, gradient = value_and_gradient(GHMC(10, 0.0, *mode), x, y, valid)
    torch.testing.assert_close(gradient, beta / valid.sum() * (x.sigmoid() - y), rtol=1e-6, atol=1e-12)


def test_the_gradient_of_a_single_element_is_its_residual():
    _, gradient = value_and_gradient(GHMC(momentum=0.0), torch.tensor([[0.3]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[0.3]]).sigmoid() - 1)


def test_the_gradient_mass_is_the_mean_over_regions_of_their_mean_norm():
    # What the harmony is: N and the crowd of easy examples leave no trace.
    x, y, valid = case(anchors=500)
    g = (x.sigmoid() - y).abs()[valid]
    regions = (g * 10).long()
    expected = torch.stack([g[regions == j].mean() for j in regions.unique()]).mean()
    _, gradient = value_and_gradient(GHMC(bins=10, momentum=0.0), x, y, valid)
    torch.testing.assert_close(gradient.abs().sum(), expected, rtol=1e-6, atol=0)


# Ignored elements


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows_only", [False, True])
def test_ignored_elements_leave_no_trace_in_value_gradient_and_state(mode, rows_only, junk):
    x, y, valid = case()
    if rows_only:
        valid = valid[:, 0]
    clean, soiled = GHMC(10, 0.75, *mode), GHMC(10, 0.75, *mode)
    for _ in range(2):
        expected, expected_gradient = value_and_gradient(clean, x[valid], y[valid])
        bad_x, bad_y = x.clone(), y.clone()
        bad_x[~valid], bad_y[~valid] = junk, junk
        value, gradient = value_and_gradient(soiled, bad_x, bad_y, valid)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[valid], expected_gradient)
        assert gradient[~valid].eq(0).all()
        assert torch.equal(soiled.density.average, clean.density.average)


def test_a_mask_of_anchors_equals_the_same_mask_for_every_class():
    x, y, valid = case()
    rows = valid[:, 0]
    assert torch.equal(GHMC()(x, y, rows), GHMC()(x, y, rows[:, None].expand_as(x)))


def test_no_mask_means_that_all_count():
    assert torch.equal(GHMC()(X, Y), GHMC()(X, Y, torch.ones_like(VALID)))


@pytest.mark.parametrize(("density", "normalize"), MODES)
@pytest.mark.parametrize("anchors", [0, 4])
def test_nothing_valid_gives_zero_with_a_live_graph(density, normalize, anchors):
    loss = GHMC(10, 0.75, density, normalize)
    x = torch.full((anchors, 2), math.nan, requires_grad=True)
    value = loss(x, torch.zeros(anchors, 2), torch.zeros(anchors, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert x.grad.eq(0).all()
    assert loss.density.average.eq(0).all()


def test_an_invalid_element_that_counts_is_reported_by_the_value():
    x = X.clone()
    x[0, 0] = math.nan
    assert GHMC()(x, Y, VALID).isnan()


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_saturated_logits_are_finite(mode, dtype):
    x = torch.tensor([[1e4, -1e4], [1e4, -1e4], [50.0, -50.0]], dtype=dtype)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=dtype)
    value, gradient = value_and_gradient(GHMC(30, 0.75, *mode), x, y)
    assert value.isfinite()
    assert gradient.isfinite().all()
    # The hardest outliers, g = 1, take part.
    assert gradient[1].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_are_computed_in_full_precision(mode, dtype):
    x, y, valid = case(anchors=400)
    x = x.to(dtype)
    value, gradient = value_and_gradient(GHMC(30, 0.75, *mode), x, y.to(dtype), valid)
    expected, expected_gradient = value_and_gradient(GHMC(30, 0.75, *mode), x.float(), y.float(), valid)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("bins", [10, 30])
def test_single_precision_agrees_with_double(bins):
    x, y, valid = case(anchors=2000, dtype=torch.float32)
    single = GHMC(bins=bins)(x, y, valid)
    torch.testing.assert_close(single.double(), GHMC(bins=bins)(x.double(), y.double(), valid), rtol=1e-3, atol=0)


def test_double_precision_is_double_to_the_end():
    x, y, valid = case()
    expected = loop_loss(x, y, valid, 10, "occupied")
    assert GHMC(bins=10, momentum=0.0)(x, y, valid).item() == pytest.approx(expected, rel=1e-12)


# Strength


def test_no_strength_is_plain_cross_entropy():
    x, y, valid = case()
    value, gradient = value_and_gradient(GHMC(momentum=0.0, strength=0.0), x, y, valid)
    expected, expected_gradient = value_and_gradient(
        lambda x: F.binary_cross_entropy_with_logits(x[valid], y[valid]), x
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


def test_no_strength_is_cross_entropy_times_the_mean_weight():
    x, y, valid = case()
    mean = GHMC(momentum=0.0, normalize="all").density((x.sigmoid() - y).abs(), valid)[valid].mean()
    value = GHMC(momentum=0.0, normalize="all", strength=0.0)(x, y, valid)
    expected = mean * F.binary_cross_entropy_with_logits(x[valid], y[valid])
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_the_strength_warm_up_leads_from_cross_entropy_to_the_paper():
    warming, full = GHMC(bins=10, strength_warmup=3), GHMC(bins=10)
    for step in range(6):
        x, y, valid = case(step)
        value, paper = warming(x, y, valid), full(x, y, valid)
        if step == 0:
            torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(x[valid], y[valid]))
        assert math.isclose(value.item(), paper.item(), rel_tol=1e-9) == (step >= 3)


# State


def test_a_loaded_loss_continues_identically():
    unbroken, first, second = (GHMC(strength_warmup=4) for _ in range(3))
    expected = [unbroken(*case(step)) for step in range(8)]
    for step in range(3):
        first(*case(step))
    second.load_state_dict(first.state_dict())
    for step in range(3, 8):
        assert torch.equal(second(*case(step)), expected[step])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y[:2]), r"target of shape \(2, 2\): must have the input's shape \(3, 2\)"),
        ((X, Y, VALID.float()), r"valid of shape \(3, 2\) and type torch.float32: must be bool"),
        ((X, Y, VALID[:2]), r"valid of shape \(2, 2\) and type torch.bool: must be bool of shape \(3, 2\) or \(3,\)"),
        ((X, Y, VALID[0]), r"valid of shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GHMC()(*arguments)


@pytest.mark.parametrize(("name", "value"), [("bins", 0), ("momentum", 1.0), ("strength", 2.0), ("density", "kde")])
def test_a_bad_setting_is_named_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: must "):
        GHMC(**{name: value})


# Two processes

LOSSES = {
    "ghm_c": lambda: GHMC(bins=10, momentum=0.75),
    "ghm_c_all": lambda: GHMC(bins=10, momentum=0.5, normalize="all"),
    "ghm_c_softened": lambda: GHMC(bins=10, momentum=0.75, strength=0.7, strength_warmup=2),
    "ghm_r": lambda: GHMR(mu=0.5, bins=10, momentum=0.7),
}
SPLITS = [20, 33, 40, 0, 1]  # rows of 40 that rank 0 has at each step: even, uneven, all, none, one
ROWS = 40


def joined_batch(step):
    """Features, targets and mask: the logits depend on parameters, as under DistributedDataParallel."""
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(ROWS, 4, generator=generator) < 0.2).double()
    return features, targets, torch.rand(ROWS, generator=generator) < 0.8


def train(make, select):
    """Value, gradient and the average's state after each step, over the rows that `select` leaves."""
    loss = make()
    parameters = torch.randn(5, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    steps = []
    for step in range(len(SPLITS)):
        features, targets, valid = (part[select(step)] for part in joined_batch(step))
        value, gradient = value_and_gradient(lambda w, f=features, t=targets, v=valid: loss(f @ w, t, v), parameters)
        steps.append((value, gradient, loss.density.average.clone()))
    return steps


def train_on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def share(step):
        return slice(0, SPLITS[step]) if rank == 0 else slice(SPLITS[step], ROWS)

    torch.save({name: train(make, share) for name, make in LOSSES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(train_on_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one_on_the_joined_batch(two_ranks, name):
    joined = train(LOSSES[name], lambda step: slice(None))
    for whole, *parts in zip(joined, *(rank[name] for rank in two_ranks), strict=True):
        # DistributedDataParallel averages gradients; the reported value is averaged likewise.
        for place in (0, 1):
            torch.testing.assert_close(sum(part[place] for part in parts) / 2, whole[place])
        for part in parts:
            assert torch.equal(part[2], whole[2])
