"""What torch.compile makes of the losses, and what they ask of the device: no wait, few operations."""

import math
import os
import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ghm.losses import ASL1, GHMC, GHMR, MMDET, OHEM, CrossEntropy, FocalLoss, SmoothL1, SoftmaxGHMC
from tests.losses.gradient import boxes, classification, state_of, value_and_gradient

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))),
    reason="torch.compile writes C++, and there is no compiler for it",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Rows of the steps: they vary, as those of a detector's images do.
ROWS = [40, 52, 33, 80, 47]


def of_classes(step, dtype=torch.float64, masked=True):
    x, y, valid = classification(step, anchors=ROWS[step % len(ROWS)], dtype=dtype)
    return (x, y, valid) if masked else (x, y)


def of_boxes(step, dtype=torch.float64):
    return boxes(step, positives=ROWS[step % len(ROWS)], dtype=dtype)


def of_indices(step):
    x, y, valid = of_classes(step)
    return x, y.argmax(1), valid[:, 0]


def of_levels(step):
    rows = ROWS[step % len(ROWS)]
    return *of_classes(step), [rows - 14, 8, 4, 2, 0]


CASES = {
    "ghm_c": (partial(GHMC, 10), of_classes),
    "ghm_c of indices": (partial(GHMC, 10), of_indices),
    "ghm_c without a mask": (partial(GHMC, 10, normalize="all"), partial(of_classes, masked=False)),
    "ghm_c warming up": (partial(GHMC, 10, strength_warmup=3, max_weight=2.0), of_classes),
    "ghm_c accumulating": (partial(GHMC, 10, accumulation=2, strength=0.5), of_classes),
    "ghm_c as mmdetection's": (partial(GHMC, 10, **MMDET), of_levels),
    "ghm_c by level": (partial(GHMC, 10, scope="level"), of_levels),
    "ghm_c exact": (partial(GHMC, 10, density="exact"), of_classes),
    "ghm_r": (partial(GHMR, weight=10.0), of_boxes),
    "softmax": (partial(SoftmaxGHMC, 10), of_indices),
    "cross_entropy": (CrossEntropy, of_classes),
    "focal": (FocalLoss, of_classes),
    "ohem": (OHEM, of_classes),
    "asl1": (ASL1, of_boxes),
    "smooth_l1": (SmoothL1, of_boxes),
}


# torch.compile


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()


def compiled(loss, backend):
    """Without a single break: `fullgraph` raises where one would be needed."""
    return torch.compile(loss, fullgraph=True, backend=backend)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", CASES)
def test_compiled_in_one_graph_it_computes_the_same(name):
    make, batch = CASES[name]
    loss, eager = make(), make()
    fast = compiled(loss, "aot_eager")
    for step in range(len(ROWS)):
        torch.testing.assert_close(value_and_gradient(fast, *batch(step)), value_and_gradient(eager, *batch(step)))
        torch.testing.assert_close(state_of(loss), state_of(eager))
    # One for the first number of rows, one for all others.
    assert graphs() <= 2


def with_extremes(step):
    """Saturated logits, and invalid ones that do not count."""
    x, y, valid = of_classes(step, dtype=torch.float32)
    x[:3], y[:3] = torch.tensor([1e4, -1e4, 40.0]), torch.tensor([0.0, 1.0, 1.0])
    x[3:6], valid[3:6] = torch.tensor([math.nan, math.inf, -math.inf]), False
    return x, y, valid


@needs_compiler
@pytest.mark.parametrize(
    ("make", "batch"),
    [(partial(GHMC, 30), with_extremes), (GHMR, partial(of_boxes, dtype=torch.float32))],
    ids=["ghm_c", "ghm_r"],
)
def test_compiled_to_machine_code_it_computes_the_same(make, batch):
    loss, eager = make(), make()
    fast = compiled(loss, "inductor")
    for step in range(len(ROWS)):
        torch.testing.assert_close(
            value_and_gradient(fast, *batch(step)), value_and_gradient(eager, *batch(step)), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(state_of(loss), state_of(eager))
    x, y, valid = batch(0)
    x[7], valid[7] = math.nan, True
    value, _ = value_and_gradient(fast, x, y, valid)
    assert value.isnan()
    value_and_gradient(eager, x, y, valid)
    torch.testing.assert_close(state_of(loss), state_of(eager))
    assert graphs() <= 2


def test_compiled_it_counts_in_training_only():
    loss = GHMC(10)
    fast = compiled(loss, "aot_eager")
    fast(*of_classes(0))
    before, alone = state_of(loss), GHMC(10)
    alone.load_state_dict(before)
    with torch.no_grad():
        fast(*of_classes(1))
    loss.eval()
    alone.eval()
    torch.testing.assert_close(fast(*of_classes(2)), alone(*of_classes(2)))
    torch.testing.assert_close(state_of(loss), before, rtol=0, atol=0)


# What the device is asked


class Watch(TorchDispatchMode):
    """Every operation: how many, and those that would have to wait for the device's answer."""

    # `meta` tensors have no values: what reads one fails by itself. These would read on a device.
    WAITING = (
        "_local_scalar_dense",
        "bincount",
        "equal",
        "is_nonzero",
        "item",
        "lift_fresh",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique",
    )

    def __init__(self):
        super().__init__()
        self.operations, self.waiting = [], []

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        name = function.overloadpacket.__name__
        self.operations.append(name)
        tensors = [part for part in tree_leaves((arguments, settings, result)) if isinstance(part, torch.Tensor)]
        by_mask = name.startswith("index") and any(part.dtype == torch.bool for part in tensors[1:])
        if name.startswith(self.WAITING) or by_mask or len({part.device for part in tensors}) > 1:
            self.waiting.append(name)
        return result


LARGE = 2**18 // 3 + 1  # more than the exact density sorts
DEVICE_CASES = CASES | {
    "ghm_c exact, large": (
        partial(GHMC, 10, density="exact"),
        lambda step: [part.repeat(LARGE // 40 + 1, 1) for part in classification(step)],
    )
}


def on_device(name, device):
    """A loss and its batches on that device; level sizes are numbers."""
    make, batch = DEVICE_CASES[name]

    def moved(step):
        return [part.to(device) if isinstance(part, torch.Tensor) else part for part in batch(step)]

    return make().to(device), moved


@pytest.mark.parametrize("name", DEVICE_CASES)
def test_nothing_waits_for_the_device(name):
    """On tensors without values no step can depend on one, nor mix in what lies on the host."""
    loss, batch = on_device(name, "meta")
    for step in range(2):
        arguments = batch(step)
        with Watch() as watch:
            value, gradient = value_and_gradient(loss, *arguments)
        assert not watch.waiting
        assert value.device.type == gradient.device.type == "meta"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", DEVICE_CASES)
def test_the_device_says_so_itself(name):
    loss, batch = on_device(name, "cuda")
    value_and_gradient(loss, *batch(0))  # kernels are loaded
    steps = [batch(step) for step in range(3)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [value_and_gradient(loss, *arguments) for arguments in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    alone, on_host = on_device(name, "cpu")
    value_and_gradient(alone, *on_host(0))
    for step, seen in enumerate(got):
        expected = value_and_gradient(alone, *on_host(step))
        torch.testing.assert_close([part.cpu() for part in seen], list(expected))


def operations(make, batch):
    loss = make()
    loss(*batch)
    x, *rest = batch
    x = x.clone().requires_grad_()
    with Watch() as watch:
        loss(x, *rest).backward()
    return len(watch.operations)


@pytest.mark.parametrize("masked", [False, True])
def test_the_number_of_operations_does_not_depend_on_the_number_of_regions(masked):
    """mmdetection's loop: 297 to 537 for 30 regions, and 31 waits."""
    numbers = {
        operations(partial(GHMC, bins), classification(anchors=anchors)[: 3 if masked else 2])
        for bins in (1, 10, 300)
        for anchors in (40, 4000)
    }
    assert len(numbers) == 1
    assert numbers.pop() <= 100
