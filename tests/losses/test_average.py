"""The moving average of counts (Eq. 12-13), a loss's only state: against loops, and under all that a training does."""

import copy
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from ghm.losses.average import MovingAverage
from ghm.losses.density import GradientDensity

modest = settings(max_examples=50, deadline=None)
BINS = 5


def build(
    momentum=0.75, bins=BINS, bias_correction=True, emptied="decay", accumulation=1, new_bins="error"
) -> MovingAverage:
    return MovingAverage(bins, momentum, bias_correction, emptied, accumulation, new_bins)


def stream(steps=6, seed=0, bins=BINS):
    """Counts of regions, of which some are empty now and then."""
    draw = random.Random(seed)
    return [[draw.choice([0, draw.randint(1, 10**6)]) for _ in range(bins)] for _ in range(steps)]


def norms(count=60, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def total(counts):
    return [sum(region) for region in zip(*counts, strict=True)]


def loop(steps, momentum, bias_correction, emptied, accumulation):
    """Eq. 12 for every region by itself, in plain floats; yields S, its correction, and the updates, per call."""
    average, updates = [0.0] * BINS, 0
    for first in range(0, len(steps), accumulation):
        micro = steps[first : first + accumulation]
        for calls in range(1, len(micro) + 1):
            so_far = [count * accumulation / calls for count in total(micro[:calls])]
            moved = [
                old
                if (count == 0 if emptied == "stay" else sum(so_far) == 0)
                else momentum * old + (1 - momentum) * count
                for old, count in zip(average, so_far, strict=True)
            ]
            age = 1 - momentum ** (updates + 1) if bias_correction else 1.0
            seen = [value / age for value in moved]
            if calls == accumulation:
                average, updates = moved, updates + (sum(so_far) > 0)
            yield seen, average, updates


def state_of(module):
    return copy.deepcopy(module.state_dict())


def same(before, module):
    after = module.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in after)


def continues_as(one, other, steps):
    """Whether both give the same from here on, bit for bit."""
    pairs = [(one(torch.tensor(counts)), other(torch.tensor(counts))) for counts in steps]
    return all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True)) and same(state_of(one), other)


# Eq. 12 and 13


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.75, 0.9])
def test_after_t_calls_the_average_is_the_closed_form_of_eq_12_and_13(momentum, bias_correction):
    average = build(momentum, bias_correction=bias_correction)
    steps = stream(8)
    for t in range(1, len(steps) + 1):
        step = average(torch.tensor(steps[t - 1]))
        decay = [(1 - momentum) * momentum ** (t - i) for i in range(1, t + 1)]
        wanted = [sum(d * counts[j] for d, counts in zip(decay, steps[:t], strict=True)) for j in range(BINS)]
        assert average.counts.tolist() == pytest.approx(wanted)
        age = 1 - momentum**t if bias_correction else 1.0
        assert step.average.tolist() == pytest.approx([value / age for value in wanted])
        assert step.counts.tolist() == steps[t - 1]
        assert (step.updates.item(), average.updates.item()) == (t - 1, t)


@modest
@given(
    seed=st.integers(0, 10**6),
    momentum=st.floats(0, 0.99),
    options=st.sampled_from([(True, "decay"), (False, "decay"), (False, "stay")]),
    accumulation=st.integers(1, 4),
)
def test_every_call_equals_a_loop_over_regions(seed, momentum, options, accumulation):
    bias_correction, emptied = options
    average = build(momentum, BINS, bias_correction, emptied, accumulation)
    steps = stream(10, seed)
    if seed % 2:
        steps[4:6] = [[0] * BINS] * 2  # calls without an example
    wanted = loop(steps, momentum, bias_correction, emptied, accumulation)
    for counts, (seen, kept, updates) in zip(steps, wanted, strict=True):
        assert average(torch.tensor(counts)).average.tolist() == pytest.approx(seen)
        assert average.counts.tolist() == pytest.approx(kept)
        assert average.updates.item() == updates


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75, 0.9, 0.9999, 0.999999, 1 - 1e-9])
def test_a_corrected_average_starts_as_the_first_counts(momentum):
    """Eq. 13; without correction S is (1 - alpha) R, and the weights 1 / (1 - alpha) times too large."""
    counts = torch.tensor([7, 0, 10**6, 1, 3])
    corrected, plain = build(momentum)(counts), build(momentum, bias_correction=False)(counts)
    torch.testing.assert_close(corrected.average, counts.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(plain.average, counts.double() * (1 - momentum), rtol=1e-6, atol=0)


@pytest.mark.parametrize("momentum", [0.5, 0.75, 0.9])
def test_a_constant_stream_is_its_own_average(momentum):
    counts = torch.tensor([7, 0, 10**6, 1, 3])
    corrected, plain = build(momentum), build(momentum, bias_correction=False)
    for t in range(1, 30):
        torch.testing.assert_close(corrected(counts).average, counts.double())
        torch.testing.assert_close(plain(counts).average, counts.double() * (1 - momentum**t))


def test_an_emptied_region_decays_as_eq_12_says_or_stays():
    decay, stay = build(0.5, 2, False), build(0.5, 2, False, "stay")
    for counts in ([8, 0], [0, 8], [0, 8], [0, 8]):
        decay(torch.tensor(counts))
        stay(torch.tensor(counts))
    assert decay.counts.tolist() == [8 * 0.5**4, 8 * (1 - 0.5**3)]
    assert stay.counts.tolist() == [8 * 0.5, 8 * (1 - 0.5**3)]


def test_without_correction_and_with_regions_that_stay_it_is_that_of_mmdetection():
    # Measured outside this project: reference/ghm.md, 1.6.
    average = build(0.75, 10, False, "stay")
    for _ in range(3):
        average(torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 1]))
    assert average.counts.tolist() == [0.578125] * 4 + [0] * 5 + [0.578125]


def test_regions_that_stay_need_an_uncorrected_average():
    with pytest.raises(ValueError, match=r"^emptied=stay: needs bias_correction=False"):
        build(emptied="stay")
    with pytest.raises(ValueError, match=r"^emptied=stay: needs bias_correction=False"):
        GradientDensity(10, 0.75, emptied="stay")
    GradientDensity(10, 0.75, emptied="stay", bias_correction=False)


def test_counts_that_float32_cannot_hold_are_kept():
    average = build(0.5)
    odd = [2**24 + 1, 2**40 + 1, 0, 1, 2**24 - 1]
    assert average(torch.tensor(odd)).average.tolist() == odd
    assert average.counts.tolist() == [count / 2 for count in odd]
    assert {name: kept.dtype for name, kept in average.named_buffers()} == {
        "counts": torch.float64,
        "updates": torch.int64,
        "pending": torch.float64,
        "calls": torch.int64,
    }


@pytest.mark.parametrize("accumulation", [1, 3])
def test_what_a_call_returned_is_not_changed_by_later_ones(accumulation):
    average = build(accumulation=accumulation)
    returned = [average(torch.tensor(counts)) for counts in stream(7)]
    fresh = build(accumulation=accumulation)
    for counts, before in zip(stream(7), returned, strict=True):
        for a, b in zip(fresh(torch.tensor(counts)), before, strict=True):
            assert torch.equal(a, b)


# Steps of several calls


@pytest.mark.parametrize("accumulation", [2, 3, 8])
@pytest.mark.parametrize("emptied", ["decay", "stay"])
def test_micro_batches_leave_the_state_of_one_big_batch_bit_for_bit(accumulation, emptied):
    small = build(0.75, bias_correction=False, emptied=emptied, accumulation=accumulation)
    big = build(0.75, bias_correction=False, emptied=emptied)
    for seed in range(5):
        micro = stream(accumulation, seed)
        for counts in micro:
            last = small(torch.tensor(counts))
        whole = big(torch.tensor(total(micro)))
        assert all(torch.equal(a, b) for a, b in zip(last, whole, strict=True))
        assert torch.equal(small.counts, big.counts)
        assert torch.equal(small.updates, big.updates)
        assert (small.pending.count_nonzero(), small.calls) == (0, 0)


def test_within_a_step_the_counts_so_far_stand_for_all_of_it():
    """Times k / calls; the average itself moves with the last call only (Eq. 12, per iteration)."""
    average = build(0.5, 2, accumulation=4)
    for counts in ([4, 0], [0, 4], [4, 4], [0, 0]):
        average(torch.tensor(counts))
    before = average.counts.clone()
    assert before.tolist() == [4, 4]
    seen = []
    for calls, counts in enumerate(([1, 0], [2, 0], [0, 3]), start=1):
        step = average(torch.tensor(counts))
        seen.append(step.counts.tolist())
        assert torch.equal(average.counts, before)
        assert (average.calls.item(), average.updates.item(), step.updates.item()) == (calls, 1, 1)
        wanted = [(0.5 * old + 0.5 * new) / (1 - 0.5**2) for old, new in zip([4, 4], seen[-1], strict=True)]
        assert step.average.tolist() == pytest.approx(wanted)
    assert seen == [pytest.approx([1 * 4 / 1, 0]), pytest.approx([3 * 4 / 2, 0]), pytest.approx([3 * 4 / 3, 3 * 4 / 3])]
    assert average.pending.tolist() == [3, 3]


@pytest.mark.parametrize("emptied", ["decay", "stay"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_without_an_example_leaves_the_state_alone(accumulation, emptied):
    average = build(0.75, BINS, False, emptied, accumulation)
    nobody, somebody = torch.zeros(BINS, dtype=torch.int64), torch.tensor([1, 2, 3, 4, 0])
    for _ in range(2):
        before = state_of(average)
        for _ in range(accumulation):
            assert average(nobody).counts.tolist() == [0] * BINS
        assert same(before, average)
        for _ in range(accumulation):
            average(somebody)
    assert average.updates.item() == 2


def test_a_micro_batch_without_an_example_is_one_of_the_step_all_the_same():
    average = build(0.5, 2, accumulation=2)
    average(torch.tensor([0, 0]))
    step = average(torch.tensor([6, 0]))
    assert step.counts.tolist() == [6, 0]
    assert (average.counts.tolist(), average.updates.item(), average.calls.item()) == ([3, 0], 1, 0)


# When it stays as it is


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("training", "grad"), [(True, False), (False, True), (False, False)])
def test_evaluation_and_no_grad_see_the_next_step_but_keep_nothing(training, grad, accumulation):
    average = build(accumulation=accumulation)
    for counts in stream(4):
        average(torch.tensor(counts))
    before = copy.deepcopy(list(average.buffers()))
    counts = torch.tensor(stream(1, seed=9)[0])
    average.train(training)
    with torch.set_grad_enabled(grad):
        seen = [average(counts) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), before, strict=True))
    wanted = average.train()(counts)
    assert all(torch.equal(a, b) for step in seen for a, b in zip(step, wanted, strict=True))


# Saved, moved, copied


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_state_is_the_average_and_the_updates_and_what_is_pending_within_a_step(momentum):
    # Edges would tie a checkpoint to details; all of these are needed to continue.
    assert set(build(momentum).state_dict()) == {"counts", "updates"}
    assert set(build(momentum, accumulation=2).state_dict()) == {"counts", "updates", "pending", "calls"}
    assert set(GradientDensity(10, momentum).state_dict()) == {"average.counts", "average.updates"}


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("after", range(7))
def test_a_saved_and_loaded_state_continues_bit_for_bit_in_the_midst_of_a_step_too(after, accumulation, tmp_path):
    steps = stream(9)
    unbroken = build(accumulation=accumulation)
    for counts in steps[:after]:
        unbroken(torch.tensor(counts))
    torch.save(unbroken.state_dict(), tmp_path / "state.pt")
    resumed = build(accumulation=accumulation)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert continues_as(unbroken, resumed, steps[after:])


@pytest.mark.parametrize("density", ["regions", "exact"])
def test_weights_continue_bit_for_bit_from_a_saved_state(density):
    setup = {"bins": 10, "momentum": 0.75, "density": density, "strength": 0.8, "strength_warmup": 5, "accumulation": 2}
    unbroken, first, second = (GradientDensity(**setup) for _ in range(3))
    expected = [unbroken(norms(seed=seed)) for seed in range(9)]
    for seed in range(3):
        first(norms(seed=seed))
    second.load_state_dict(first.state_dict())
    for seed in range(3, 9):
        assert torch.equal(second(norms(seed=seed)), expected[seed])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_average_of_other_regions_is_an_error_that_names_the_setting_or_starts_anew(accumulation):
    saved = build(bins=10, accumulation=accumulation)
    for counts in stream(3, bins=10):
        saved(torch.tensor(counts))
    state = saved.state_dict()
    before = state_of(saved)
    with pytest.raises(ValueError, match=r"^bins=5: .* 10 regions; set bins=10, or new_bins=reset "):
        build(accumulation=accumulation).load_state_dict(state)
    anew = build(accumulation=accumulation, new_bins="reset")
    for counts in stream(5, seed=1):
        anew(torch.tensor(counts))
    anew.load_state_dict(state)
    # Neither what was saved nor its dictionary has changed.
    assert same(before, saved)
    assert all(torch.equal(before[name], state[name]) for name in before)
    assert continues_as(anew, build(accumulation=accumulation), stream(4, seed=2))


def test_an_average_of_as_many_regions_is_loaded_whatever_new_bins_says():
    saved = build()
    for counts in stream(3):
        saved(torch.tensor(counts))
    loaded = build(new_bins="reset")
    loaded.load_state_dict(saved.state_dict())
    assert continues_as(saved, loaded, stream(4, seed=2))


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.float(),
        lambda module: module.to(torch.float16),
        lambda module: module.to(device="cpu", dtype=torch.bfloat16),
    ],
    ids=["half", "bfloat16", "float", "to(float16)", "to(cpu, bfloat16)"],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_model_of_another_precision_keeps_its_counts_in_float64(move, accumulation):
    average = build(accumulation=accumulation)
    for counts in stream(3):
        average(torch.tensor(counts) + 10**6)
    before, copied = state_of(average), copy.deepcopy(average)
    model = move(nn.Sequential(nn.Linear(2, 2), average))
    assert model[0].weight.dtype != torch.float64
    assert [buffer.dtype for buffer in average.buffers()] == [torch.float64, torch.int64, torch.float64, torch.int64]
    assert same(before, average)
    assert continues_as(average, copied, stream(5, seed=1))


def test_moving_to_another_device_moves_the_whole_state():
    average = build(accumulation=2).to("meta")
    assert {buffer.device.type for buffer in average.buffers()} == {"meta"}


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_copy_has_the_state_and_goes_its_own_way(copier, accumulation):
    average = build(accumulation=accumulation)
    for counts in stream(3):
        average(torch.tensor(counts))
    copied, kept = copier(average), copier(average)
    for counts in stream(5, seed=1):
        copied(torch.tensor(counts))
    assert same(state_of(kept), average)
    assert continues_as(average, kept, stream(4, seed=2))


def test_averaging_a_models_parameters_leaves_its_counts_alone():
    model = nn.Sequential(nn.Linear(2, 2), GradientDensity(10, 0.75))
    averaged = AveragedModel(model)
    for seed in range(4):
        model[1](norms(seed=seed))
        before = state_of(model[1])
        averaged.update_parameters(model)
        assert same(before, model[1])
        assert same(before, averaged.module[1])


# Activation checkpointing


def train(reentrant, density, calls=1, steps=4):
    """Gradients of some steps of descent, the loss computed a second time in backward unless `reentrant` is None."""
    density.average.remember(calls)
    w = torch.linspace(-1, 2, 40, dtype=torch.float64).requires_grad_()
    gradients = []

    def loss(w, x):
        values = []
        for part in x:
            g = (w * part).sigmoid()
            values.append((density(g) * g.square()).sum())
        return sum(values)

    for step in range(steps):
        x = torch.randn(calls, 40, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 2
        value = loss(w, x) if reentrant is None else checkpoint(loss, w, x, use_reentrant=reentrant)
        (gradient,) = gradient_of(value, w)
        gradients.append(gradient)
        with torch.no_grad():
            w -= gradient
    return gradients


def gradient_of(value, *inputs):
    for each in inputs:
        each.grad = None
    value.backward()
    return [each.grad.clone() for each in inputs]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_correction": False, "emptied": "stay"},
        {"strength_warmup": 3},
        {"accumulation": 3},
        {"density": "exact", "strength_warmup": 3},
    ],
    ids=str,
)
def test_activation_checkpointing_gives_the_same_gradients_and_moves_the_average_once(reentrant, options):
    plain, again = (GradientDensity(BINS, 0.75, **options) for _ in range(2))
    wanted, got = train(None, plain), train(reentrant, again)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert same(state_of(plain), again)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_a_loss_that_calls_the_density_for_each_level_gives_the_same_gradients(reentrant):
    plain, again = (GradientDensity(BINS, 0.75) for _ in range(2))
    wanted, got = train(None, plain, calls=3), train(reentrant, again, calls=3)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert same(state_of(plain), again)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_in_evaluation_gives_the_same_gradients_and_keeps_the_state(reentrant):
    plain, again = (GradientDensity(BINS, 0.75) for _ in range(2))
    for density in (plain, again):
        train(None, density)
        density.eval()
    before = state_of(plain)
    wanted, got = train(None, plain), train(reentrant, again)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert same(before, plain)
    assert same(before, again)


def test_a_second_backward_through_a_checkpoint_counts_nothing_either():
    density = GradientDensity(BINS, 0.75)
    train(False, density, steps=2)
    w = torch.linspace(-1, 2, 40, dtype=torch.float64).requires_grad_()
    value = checkpoint(lambda w: (density(w.sigmoid()) * w.square()).sum(), w, use_reentrant=False)
    before = state_of(density)
    first, second = (torch.autograd.grad(value, w, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert same(before, density)


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_checkpointed_losses_of_one_backward_are_counted_once_each(reentrant):
    density = GradientDensity(BINS, 0.75)
    w = torch.linspace(-1, 2, 40, dtype=torch.float64).requires_grad_()

    def loss(w):
        return (density(w.sigmoid()) * w.square()).sum()

    for step in range(3):
        value = checkpoint(loss, w, use_reentrant=reentrant) + checkpoint(loss, 2 * w, use_reentrant=reentrant)
        after_forward = state_of(density)
        value.backward()
        assert density.average.updates == 2 * step + 2
        assert reentrant or same(after_forward, density)


def test_a_look_at_a_batch_between_forward_and_backward_is_no_step():
    """As a chart takes it, which evaluates."""
    plain, again = (GradientDensity(BINS, 0.75) for _ in range(2))
    w = torch.linspace(-1, 2, 40, dtype=torch.float64).requires_grad_()
    gradients = []
    for density, checkpointed in ((plain, False), (again, True)):

        def loss(w, density=density):
            return (density(w.sigmoid()) * w.square()).sum()

        for _ in range(2):
            value = checkpoint(loss, w, use_reentrant=False) if checkpointed else loss(w)
            density.eval()
            density(norms())
            density.train()
            gradients.extend(gradient_of(value, w))
    assert torch.equal(gradients[1], gradients[3])
    assert same(state_of(plain), again)


@pytest.mark.parametrize("reentrant", [True, False])
def test_steps_with_and_without_checkpointing_may_take_turns(reentrant):
    plain, again = (GradientDensity(BINS, 0.75) for _ in range(2))
    w = torch.linspace(-1, 2, 40, dtype=torch.float64).requires_grad_()
    for step in range(6):
        found = []
        for density, kind in ((plain, None), (again, None if step % 2 else reentrant)):

            def loss(w, x, density=density):
                g = (w * x).sigmoid()
                return (density(g) * g.square()).sum()

            x = torch.randn(40, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 2
            value = loss(w, x) if kind is None else checkpoint(loss, w, x, use_reentrant=kind)
            found.extend(gradient_of(value, w))
        assert torch.equal(*found)
    assert same(state_of(plain), again)
