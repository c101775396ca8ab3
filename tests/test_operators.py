"""Non-maximum suppression and RoIAlign of our own against naive loops, and who defines torchvision's operators."""

import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ghm import operators

# Where torchvision loads its own library, its operators are held to the same oracles.
KINDS = {"ours": operators.nms, "registered": torch.ops.torchvision.nms}
ALIGNS = {"ours": operators.roi_align, "registered": torch.ops.torchvision.roi_align}
ALIGN_MODULE = importlib.import_module("torchvision.ops.roi_align")  # torchvision.ops.roi_align is the function


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


def naive_roi_align(features, rois, scale, pooled_height, pooled_width, ratio, aligned):
    """Bilinear samples, one by one, in the features' precision, as torchvision's C++ operator takes them."""
    features, rois = features.detach().numpy(), rois.numpy()
    real = features.dtype.type
    pooled = np.zeros((len(rois), features.shape[1], pooled_height, pooled_width), features.dtype)
    for k, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (side * real(scale) - real(0.5 if aligned else 0) for side in box)
        roi_height, roi_width = y2 - y1, x2 - x1
        if not aligned:
            roi_height, roi_width = max(roi_height, real(1)), max(roi_width, real(1))
        step_y, step_x = roi_height / real(pooled_height), roi_width / real(pooled_width)
        samples_y, samples_x = (ratio, ratio) if ratio > 0 else (int(np.ceil(step_y)), int(np.ceil(step_x)))
        for i, j in np.ndindex(pooled_height, pooled_width):
            for iy in range(samples_y):
                y = y1 + real(i) * step_y + real(iy + 0.5) * step_y / real(samples_y)
                for ix in range(samples_x):
                    x = x1 + real(j) * step_x + real(ix + 0.5) * step_x / real(samples_x)
                    pooled[k, :, i, j] += naive_sample(features[int(image)], y, x)
        pooled[k] /= real(max(samples_y * samples_x, 1))
    return torch.from_numpy(pooled)


def naive_sample(feature, y, x):
    _, height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0
    y, x = max(y, 0), max(x, 0)
    y_low, x_low = int(y), int(x)
    y_high, x_high = y_low + 1, x_low + 1
    if y_low >= height - 1:
        y = y_low = y_high = height - 1
    if x_low >= width - 1:
        x = x_low = x_high = width - 1
    up, left = 1 - (y - y_low), 1 - (x - x_low)
    above = left * feature[:, y_low, x_low] + (1 - left) * feature[:, y_low, x_high]
    below = left * feature[:, y_high, x_low] + (1 - left) * feature[:, y_high, x_high]
    return up * above + (1 - up) * below


def features(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rois_at(images, height, width, inside=False, count=12, seed=0):
    """RoIs about an image of height x width; unless `inside`, all that is awkward besides, its images out of order."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, 2, 2, generator=generator) * torch.tensor([width, height])
    if not inside:
        ends = ends * 2 - ends.new_tensor([width, height]) / 2
    boxes = ends.sort(dim=1).values.flatten(1).tolist()
    if not inside:
        h, w = height, width
        boxes += [[0, 0, w, h], [-w, -h, 2 * w, 2 * h], [-w / 2, 1, w / 2, h], [0.3, 0.4, 0.5, 0.7]]
        boxes += [[w + 3, 0, 2 * w + 3, h], [0, -2 * h - 3, w, -h - 3], [-5 * w, -5 * h, -4 * w, -4 * h]]
        boxes += [[1, 1, 1, 1], [0.5, 0.25, 0.5, 2], [0.9 * w, 0.8 * h, 0.1 * w, 0.3 * h]]  # no area, inverted
    image = torch.randint(images, (len(boxes), 1), generator=generator)
    return torch.cat([image.float(), torch.tensor(boxes)], dim=1)


@pytest.mark.parametrize("kind", ALIGNS)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 3, 0, -1])
@pytest.mark.parametrize(
    ("shape", "scale", "bins"),
    [
        ((3, 2, 9, 13), 1.0, (3, 2)),
        ((3, 2, 13, 9), 0.25, (2, 3)),
        ((2, 1, 10, 10), 0.3, (7, 7)),
        ((4, 3, 6, 5), 2.0, (1, 1)),
        ((2, 2, 1, 1), 1.0, (2, 2)),
        ((2, 2, 1, 6), 0.5, (2, 3)),
        ((2, 2, 6, 1), 0.5, (2, 3)),
    ],
)
def test_roi_align_equals_a_loop_over_samples(kind, aligned, ratio, shape, scale, bins):
    maps = features(*shape)
    rois = rois_at(shape[0], shape[2] / scale, shape[3] / scale)
    pooled = ALIGNS[kind](maps, rois, scale, *bins, ratio, aligned)
    torch.testing.assert_close(pooled, naive_roi_align(maps, rois, scale, *bins, ratio, aligned), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ALIGNS)
@pytest.mark.parametrize(
    ("y", "value"),
    [
        (-1.25, 0.0),
        (-1.0, 2.0),  # up to a pixel outside, the pixel at the border counts in full
        (-0.25, 2.0),
        (0.0, 2.0),
        (0.75, 3.5),
        (2.0, 8.0),
        (2.5, 8.0),
        (3.0, 8.0),
        (3.25, 0.0),
    ],
)
def test_a_sample_more_than_a_pixel_outside_is_zero(kind, y, value):
    column = torch.tensor([2.0, 4.0, 8.0])
    along_y, along_x = column.view(1, 1, 3, 1).expand(1, 1, 3, 3), column.view(1, 1, 1, 3).expand(1, 1, 3, 3)
    for maps, roi in ((along_y, [0.0, 0.0, y - 0.5, 1.0, y + 0.5]), (along_x, [0.0, y - 0.5, 0.0, y + 0.5, 1.0])):
        assert ALIGNS[kind](maps.contiguous(), torch.tensor([roi]), 1.0, 1, 1, 1, False).item() == value


@pytest.mark.parametrize("kind", ALIGNS)
def test_an_inverted_side_is_sampled_backwards_if_aligned(kind):
    maps = features(1, 2, 8, 8)
    rois = torch.tensor([[0.0, 6.0, 1.0, 2.0, 7.0], [0.0, 1.0, 7.0, 6.0, 2.0]])
    expected = naive_roi_align(maps, rois, 1.0, 2, 3, 2, True)
    torch.testing.assert_close(ALIGNS[kind](maps, rois, 1.0, 2, 3, 2, True), expected)
    mirrored = ALIGNS[kind](maps, rois[:, [0, 3, 2, 1, 4]], 1.0, 2, 3, 2, True)[0].flip(2)
    torch.testing.assert_close(mirrored, expected[0])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_inside_the_image_torchvisions_own_stand_in_agrees(aligned, ratio):
    # Outside the image it does not: it takes the border's pixels however far away a sample lies.
    maps = features(2, 3, 12, 15).requires_grad_()
    rois = rois_at(2, 48, 60, inside=True)
    outcomes = []
    for align in (torch.ops.torchvision.roi_align, ALIGN_MODULE._roi_align.__wrapped__):
        pooled = align(maps, rois, 0.25, 4, 3, ratio, aligned)
        outcomes.append((pooled, *torch.autograd.grad(pooled.square().sum(), maps)))
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ALIGNS)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, -1])
def test_the_gradient_is_that_of_the_value(kind, aligned, ratio):
    maps = features(2, 2, 5, 4, dtype=torch.float64).requires_grad_()
    rois = rois_at(2, 10, 8, count=4).double()
    assert torch.autograd.gradcheck(lambda maps: ALIGNS[kind](maps, rois, 0.5, 2, 2, ratio, aligned), maps)


@pytest.mark.parametrize("kind", ALIGNS)
def test_rois_get_no_gradient(kind):
    maps, rois = features(2, 2, 5, 5).requires_grad_(), rois_at(2, 5, 5).requires_grad_()
    ALIGNS[kind](maps, rois, 1.0, 2, 2, 2, False).sum().backward()
    assert maps.grad is not None
    assert rois.grad is None


@pytest.mark.parametrize("kind", ALIGNS)
@pytest.mark.parametrize("ratio", [2, -1])
def test_no_rois_pool_nothing_and_pass_no_gradient_on(kind, ratio):
    maps = features(2, 3, 5, 5).requires_grad_()
    named = {"spatial_scale": 1.0, "pooled_height": 4, "pooled_width": 2, "sampling_ratio": ratio, "aligned": False}
    pooled = ALIGNS[kind](maps, torch.zeros(0, 5), **named)
    assert pooled.shape == (0, 3, 4, 2)
    pooled.sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_pooled_in_single_precision(dtype):
    maps = features(2, 3, 60, 50, dtype=dtype).requires_grad_()
    # The RoIs are what the half type makes of them; where their samples lie is not rounded again.
    rois = rois_at(2, 240, 200, inside=True).to(dtype)
    pooled = operators.roi_align(maps, rois, 0.25, 7, 7, 2, True)
    exact = operators.roi_align(maps.detach().float(), rois.float(), 0.25, 7, 7, 2, True)
    assert torch.equal(pooled, exact.to(dtype))
    assert torch.autograd.grad(pooled.sum(), maps)[0].dtype == dtype


@pytest.mark.parametrize("kind", ALIGNS)
def test_the_memory_format_changes_nothing(kind):
    maps, rois = features(2, 4, 9, 13), rois_at(2, 9, 13)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(*(ALIGNS[kind](each, rois, 1.0, 3, 2, 2, False) for each in (maps, last)))


def spied(monkeypatch):
    """The tables and the numbers of indices with which bags are summed from now on."""
    calls = []

    def spy(indices, table, **rest):
        calls.append((table.data_ptr(), indices.numel()))
        return sum_up(indices, table, **rest)

    sum_up = torch.nn.functional.embedding_bag
    monkeypatch.setattr(operators.F, "embedding_bag", spy)
    return calls


@pytest.mark.parametrize("ratio", [2, -1])
def test_many_taps_are_summed_a_part_at_a_time(monkeypatch, ratio):
    maps, rois = features(2, 3, 20, 30).requires_grad_(), rois_at(2, 20, 30)
    calls = spied(monkeypatch)

    def counted(taps):
        monkeypatch.setattr(operators, "TAPS", taps)
        calls.clear()
        pooled = operators.roi_align(maps, rois, 1.0, 3, 2, ratio, False)
        return [count for _, count in calls], (pooled, *torch.autograd.grad(pooled.square().sum(), maps))

    whole, expected = counted(operators.TAPS)
    single, one_by_one = counted(0)  # a RoI is never cut
    parts, part_by_part = counted(max(single))
    assert len(whole) == 1
    assert len(single) == len(rois)
    assert sum(single) == sum(parts) == whole[0]
    assert max(parts) <= max(single)
    assert 1 < len(parts) < len(rois) or ratio == 2  # where all RoIs have as many, parts are single RoIs
    torch.testing.assert_close(one_by_one, expected)
    torch.testing.assert_close(part_by_part, expected)


def test_channels_last_maps_are_not_copied(monkeypatch):
    maps = features(2, 3, 20, 30).contiguous(memory_format=torch.channels_last)
    calls = spied(monkeypatch)
    operators.roi_align(maps, rois_at(2, 20, 30), 1.0, 3, 2, 2, False)
    assert calls[0][0] == maps.data_ptr()


def test_pooling_from_a_pyramid_is_as_with_torchvisions_stand_in(monkeypatch):
    from torchvision.ops import MultiScaleRoIAlign

    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=(7, 7), sampling_ratio=2)
    sizes = [(512, 640), (480, 600)]
    pyramid = {str(level): features(2, 4, 128 >> level, 160 >> level, seed=level) for level in range(3)}
    boxes = [rois_at(1, *size, inside=True, count=30, seed=seed)[:, 1:] for seed, size in enumerate(sizes)]
    ours = pool(pyramid, boxes, sizes)
    stand_in = ALIGN_MODULE._roi_align.__wrapped__
    monkeypatch.setattr(ALIGN_MODULE, "_has_ops", lambda: False)
    monkeypatch.setattr(ALIGN_MODULE, "_roi_align", stand_in)
    torch.testing.assert_close(ours, pool(pyramid, boxes, sizes), rtol=1e-5, atol=1e-5)


def test_torchvision_calls_the_operator(monkeypatch):
    from torchvision.ops import roi_align

    monkeypatch.setattr(ALIGN_MODULE, "_roi_align", None)
    maps, rois = features(2, 3, 20, 30), rois_at(2, 20, 30)
    for rois_given in (rois, [rois[rois[:, 0] == image, 1:] for image in range(2)]):
        pooled = roi_align(maps, rois_given, (3, 2), sampling_ratio=2)
        order = torch.arange(len(rois)) if rois_given is rois else rois[:, 0].argsort(stable=True)
        torch.testing.assert_close(pooled, operators.roi_align(maps, rois[order], 1.0, 3, 2, 2, False))


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
