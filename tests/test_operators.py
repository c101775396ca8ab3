"""Non-maximum suppression of our own against a naive loop, and who defines torchvision's operators."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ghm import operators

# Where torchvision loads its own library, its operator is held to the same oracle.
KINDS = {"ours": operators.nms, "registered": torch.ops.torchvision.nms}


def naive_nms(dets, scores, threshold):
    """Greedy suppression, box by box, in float32, the comparison in double, as torchvision's CPU loop does it."""
    dets = dets.numpy()
    order = np.argsort(-scores.numpy(), kind="stable")
    x1, y1, x2, y2 = dets.T
    areas = (x2 - x1) * (y2 - y1)
    suppressed = np.zeros(len(dets), dtype=bool)
    kept = []
    for place, i in enumerate(order):
        if suppressed[i]:
            continue
        kept.append(int(i))
        rest = order[place + 1 :]
        width = np.maximum(np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]), np.float32(0))
        height = np.maximum(np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]), np.float32(0))
        inter = width * height
        with np.errstate(invalid="ignore"):  # two boxes without area: 0 / 0 exceeds no threshold
            iou = inter / (areas[i] + areas[rest] - inter)
        assert iou.dtype == np.float32
        suppressed[rest[iou.astype(np.float64) > threshold]] = True
    return kept


def boxes(count, seed=0, spread=100.0, whole=False):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    size = torch.rand(count, 2, generator=generator) * 20 + 1
    scores = torch.rand(count, generator=generator)
    dets = torch.cat([corner, corner + size], dim=1)
    # Whole coordinates and few scores make many exact ties, in overlap and in score.
    return (dets.round(), (scores * 5).round() / 5) if whole else (dets, scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(
    ("count", "spread", "whole"), [(1, 10, False), (40, 20, True), (300, 100, False), (300, 60, True)]
)
def test_nms_equals_a_loop_over_boxes(kind, threshold, count, spread, whole):
    for seed in range(3):
        dets, scores = boxes(count, seed, spread, whole)
        assert KINDS[kind](dets, scores, threshold).tolist() == naive_nms(dets, scores, threshold)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("count", [operators.BLOCK, operators.BLOCK + 1, 2 * operators.BLOCK + 300])
def test_more_boxes_than_one_block_holds(count, whole):
    dets, scores = boxes(count, spread=150.0, whole=whole)
    kept = operators.nms(dets, scores, 0.5)
    assert kept.tolist() == naive_nms(dets, scores, 0.5)
    assert operators.BLOCK // 8 < len(kept) < count  # the case is neither trivial way


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_falls_link_by_link(kind):
    # Each box overlaps the next alone, so every other one stays: the answer with the most rounds.
    start = torch.arange(200, dtype=torch.float32)
    dets = torch.stack([start, torch.zeros(200), start + 1.9, torch.ones(200)], dim=1)
    scores = torch.linspace(1, 0.1, 200)
    assert KINDS[kind](dets, scores, 0.3).tolist() == list(range(0, 200, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_keep_their_order(kind):
    far_apart = torch.tensor([[0.0, 0.0, 1.0, 1.0]]) + 10 * torch.arange(6)[:, None]
    assert KINDS[kind](far_apart, torch.tensor([0.5, 0.9, 0.5, 0.9, 0.5, 0.5]), 0.5).tolist() == [1, 3, 0, 2, 4, 5]
    same_place = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(6, 1)
    assert KINDS[kind](same_place, torch.full((6,), 0.5), 0.5).tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shift", "width", "threshold", "kept"),
    [
        (1.0, 3.0, 0.5, 2),  # IoU 2 / 4 equals the threshold: both stay
        (1.0, 3.0, 0.4999, 1),
        (1.5, 8.5, 0.7, 2),  # 7 / 10 in float32 lies below 0.7
        (1.0, 4.0, 0.6, 1),  # 3 / 5 in float32 lies above 0.6
        (0.0, 1.0, 1.0, 2),  # nothing exceeds 1
        (9.0, 3.0, 0.0, 2),  # apart
        (3.0, 3.0, 0.0, 2),  # touching
    ],
)
def test_only_an_overlap_above_the_threshold_suppresses(kind, shift, width, threshold, kept):
    dets = torch.tensor([[0.0, 0.0, width, 1.0], [shift, 0.0, shift + width, 1.0]])
    assert len(KINDS[kind](dets, torch.tensor([0.9, 0.8]), threshold)) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_suppress_nothing(kind):
    dets = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]])
    assert KINDS[kind](dets, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes_keep_none(kind):
    kept = KINDS[kind](torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("whole", [False, True])
def test_batched_nms_treats_each_class_alone(whole):
    from torchvision.ops import batched_nms

    dets, scores = boxes(300, spread=50.0, whole=whole)
    classes = torch.arange(300) % 7
    kept = batched_nms(dets, scores, classes, 0.5)
    expected = set()
    for label in range(7):
        members = torch.where(classes == label)[0]
        # torchvision shifts the classes apart; the shifted boxes decide ties, so shift here as well.
        shifted = dets[members] + label * (dets.max() + 1)
        expected |= {int(members[i]) for i in naive_nms(shifted, scores[members], 0.5)}
    assert set(kept.tolist()) == expected
    assert scores[kept].diff().le(0).all()


def test_integer_boxes_have_the_same_operator():
    dets, scores = boxes(100, spread=30.0, whole=True)
    kept = operators.qnms(dets.int(), (scores * 5).int(), 0.5)
    assert kept.tolist() == naive_nms(dets, (scores * 5).round(), 0.5)


def run_python(script):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not operators.DEFINED, reason="torchvision loads its own operators here, none can be given first")
def test_operators_that_are_there_already_stay():
    said = run_python(
        """
        import torch

        def given(dets, scores, iou_threshold):
            return torch.tensor([42])

        for name in ("torchvision::nms", "torchvision::qnms"):
            torch.library.define(name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch.library.impl(name, "CompositeExplicitAutograd", given)
        import ghm.operators

        print(ghm.operators.DEFINED)
        print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).item())
        """
    )
    assert said == ["False", "42"]


@pytest.mark.parametrize("room", ["ghm.data", "ghm.models"])
def test_a_room_that_needs_torchvision_imports_first(room):
    said = run_python(
        f"""
        import {room}
        import torch, torchvision

        dets = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
        print(torchvision.ops.nms(dets, torch.tensor([0.1, 0.2]), 0.5).tolist())
        """
    )
    assert said == ["[1]"]
