"""Anchors of a batch against torchvision's Matcher, image by image; crowds against the area they cover."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghm.models import matching
from ghm.models.matching import BACKGROUND, IGNORED, beyond, covered, match, padded, unsuppressed

BETWEEN = torch.tensor([[0.0, 0, 45, 100]])  # IoU 0.45 with ANCHOR
ANCHOR = torch.tensor([[0.0, 0, 100, 100]])


def some(generator, number, grid, largest=64):
    """Boxes in a field of 100 pixels; on a coarse grid many are equal, or overlap alike."""
    corner = torch.rand(number, 2, generator=generator) * (100 - largest)
    boxes = torch.cat([corner, corner + 4 + torch.rand(number, 2, generator=generator) * (largest - 4)], dim=1)
    return (boxes / grid).round() * grid if grid else boxes


def torchvisions(boxes, anchors):
    """A row for each image, as torchvision's RetinaNet makes them."""
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    rule = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    none = torch.full((len(anchors),), BACKGROUND)
    return torch.stack([rule(box_iou(own, anchors)) if len(own) else none for own in boxes])


def without_crowds(boxes, anchors):
    return match(boxes, [each[:0] for each in boxes], anchors, 0.5, 0.4)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    numbers=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    grid=st.sampled_from([0, 1, 4, 16]),
    pairs=st.sampled_from([1, 300, 600, 2**23]),
)
def test_anchors_are_matched_as_torchvision_matches_them(seed, numbers, grid, pairs):
    """To the last bit, with ties, and in chunks of one image, a few, or all."""
    generator = torch.Generator().manual_seed(seed)
    # The last overlaps every box: torchvision gives all anchors to a box that overlaps none.
    anchors = torch.cat([some(generator, 40, grid), torch.tensor([[-300.0, -300, 400, 400]])])
    boxes = [some(generator, number, grid) + torch.tensor([0.0, 0, 4, 4]) for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PAIRS", pairs)
        assert torch.equal(without_crowds(boxes, anchors), torchvisions(boxes, anchors))


@pytest.mark.parametrize("beside", [0, 2])
def test_a_box_that_overlaps_no_anchor_matches_none(beside):
    """Where torchvision matches every anchor, all being equally far from it."""
    anchors = some(torch.Generator().manual_seed(0), 20, 0)
    others = some(torch.Generator().manual_seed(1), beside, 0)
    far = torch.tensor([[500.0, 500, 520, 520]])
    matched = without_crowds([torch.cat([others, far])], anchors)
    assert torch.equal(matched, without_crowds([others], anchors))
    assert (torchvisions([torch.cat([others, far])], anchors) >= 0).all()


@pytest.mark.parametrize(("pairs", "chunks"), [(1, [1] * 5), (2 * 3 * 10, [2, 2, 1]), (2 * 3 * 10 + 59, [3, 2])])
def test_no_more_pairs_are_compared_at_a_time_than_said(monkeypatch, pairs, chunks):
    seen, iou = [], matching._iou
    monkeypatch.setattr(matching, "PAIRS", pairs)
    monkeypatch.setattr(matching, "_iou", lambda boxes, anchors: seen.append(len(boxes)) or iou(boxes, anchors))
    generator = torch.Generator().manual_seed(0)
    boxes = [some(generator, number, 0) for number in (0, 1, 3, 2, 3)]
    without_crowds(boxes, some(generator, 10, 0))
    assert seen == chunks


# Crowds


@pytest.mark.parametrize(
    ("box", "crowds", "expected"),
    [
        (None, [[0, 0, 51, 100]], IGNORED),
        (None, [[0, 0, 50, 100]], BACKGROUND),  # half is not more than half
        (None, [[-500, -500, 500, 500]], IGNORED),
        (None, [[0, 0, 40, 100], [60, 0, 100, 100]], BACKGROUND),  # 80 % in both together
        (None, [[200, 200, 300, 300], [0, 0, 100, 60]], IGNORED),
        (None, [[40, 40, 60, 60]], BACKGROUND),  # all of the region in the anchor
        (None, [], BACKGROUND),
        ([0, 0, 100, 90], [[0, 0, 100, 100]], 0),
        ([0, 0, 20, 100], [[0, 0, 100, 100]], 0),  # the only anchor is its best
        ([0, 0, 45, 100], [[0, 0, 100, 100]], 0),
        ([300, 300, 310, 310], [[0, 0, 100, 100]], IGNORED),
    ],
)
def test_only_background_that_lies_mostly_in_one_crowd_is_ignored(box, crowds, expected):
    boxes = torch.tensor([] if box is None else [box], dtype=torch.float32).reshape(-1, 4)
    regions = torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4)
    assert match([boxes], [regions], ANCHOR, 0.5, 0.4).tolist() == [[expected]]


def test_crowds_are_those_of_their_own_image_and_what_lies_between_stays():
    anchors = torch.cat([ANCHOR, BETWEEN, ANCHOR + 200])
    crowd, none = ANCHOR + 200, ANCHOR[:0]
    rows = match([BETWEEN, BETWEEN, none], [crowd, none, crowd], anchors, 0.5, 0.4)
    assert rows.tolist() == [[IGNORED, 0, IGNORED], [IGNORED, 0, BACKGROUND], [BACKGROUND, BACKGROUND, IGNORED]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_covered_counts_the_pixels_of_each_region(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes, regions = some(generator, 20, 1, largest=12).long(), some(generator, 3, 1).long()
    for (x1, y1, x2, y2), found in zip(boxes.tolist(), covered(boxes.float(), regions.float()), strict=True):
        inside = torch.zeros(3, 100, 100)
        for part, (left, top, right, bottom) in zip(inside, regions.tolist(), strict=True):
            part[top:bottom, left:right] = 1
        shares = inside[:, y1:y2, x1:x2].sum(dim=(1, 2)) / ((x2 - x1) * (y2 - y1))
        assert found.item() == (shares > 0.5).any().item()


def test_padded_sets_rows_side_by_side():
    parts = [torch.tensor([[1, 2]]), torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[3, 4], [5, 6]])]
    joined = padded(parts, fill=-7)
    assert joined.dtype == torch.int64
    assert joined.tolist() == [[[1, 2], [-7, -7]], [[-7, -7], [-7, -7]], [[3, 4], [5, 6]]]
    assert padded([torch.zeros(0, 4)] * 3).tolist() == [[[0.0] * 4]] * 3  # a row, so that indices have something to hit
    assert padded([torch.zeros(0)]).shape == (1, 1)


def test_anchors_outside_take_no_part():
    """Neither as background nor as a box's best; the best of the rest takes its place."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [60, 60, 70, 70]])
    boxes = [torch.tensor([[0.0, 0, 10, 10]])] * 2
    outside = torch.tensor([[False, False, False], [True, False, True]])
    rows = match(boxes, [boxes[0][:0]] * 2, anchors, 0.5, 0.4, outside)
    assert rows.tolist() == [[0, IGNORED, BACKGROUND], [IGNORED, 0, IGNORED]]


def test_an_anchor_lies_beyond_an_image_by_its_centre_and_32_pixels():
    """As mmdetection's valid_flags: cells of a level that begin within the image, rounded up to 32 pixels."""
    centres = torch.tensor([[56.0, 0], [63, 0], [64, 0], [0, 31], [0, 32]])
    anchors = torch.cat([centres - 5, centres + 5], dim=1)
    sizes = torch.tensor([[32, 33], [33, 64]])  # height, width
    assert beyond(anchors, sizes).tolist() == [[False, False, True, False, True], [False, False, True, False, False]]


def test_what_a_harder_anchor_overlaps_is_left_out():
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 5]])
    hardness = torch.tensor([[1.0, 2, 3, 0], [3.0, 2, 1, 0]])
    assert unsuppressed(anchors, 0.7, None, hardness).tolist() == [[False, True, True, True], [True, False, True, True]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "CANDIDATES", 2)
        assert unsuppressed(anchors, 0.7, None, hardness).tolist() == [[False, True, True, False], [True, *[False] * 3]]


@pytest.mark.parametrize("enough", [1, 4, 12])
def test_the_hardest_that_are_left_are_the_same_however_few_are_wanted(enough):
    generator = torch.Generator().manual_seed(2)
    anchors, hardness = some(generator, 300, 4), torch.rand(2, 300, generator=generator)
    every, few = (unsuppressed(anchors, 0.3, wanted, hardness) for wanted in (None, enough))
    assert few.sum() < every.sum()
    for all_of_it, part, values in zip(every, few, hardness, strict=True):
        hardest = values.masked_fill(~all_of_it, -1).topk(enough).indices
        assert part[hardest].all()
        assert not (part & ~all_of_it).any()
