"""Which anchor is trained towards which box: the rule of RetinaNet, for all images of a batch at once."""

import torch
from torch import Tensor
from torchvision.ops import nms

BACKGROUND, IGNORED = -1, -2  # what torchvision's Matcher calls them
CANDIDATES = 6000  # hardest examples of an image that NMS looks at
PAIRS = 2**23  # box-anchor pairs compared at a time: bounds the IoU table to 32 MB


def match(
    boxes: list[Tensor],
    crowds: list[Tensor],
    anchors: Tensor,
    high: float,
    low: float,
    outside: Tensor | None = None,
) -> Tensor:
    """Index of each anchor's box, or BACKGROUND, or IGNORED; int64 (N, A).

    The rule is that of torchvision's Matcher: an anchor takes the box it overlaps most if their IoU is at
    least `high`, is background below `low` and ignored between; and the anchors that a box overlaps most
    take their best box whatever the IoU. Background of which more than half lies in a crowd region is
    ignored too: what is in there is not labelled. Anchors `outside` take no part, and are ignored.

    Shapes: `boxes` N x (P_i, 4), `crowds` N x (Q_i, 4), `anchors` (A, 4), the same for all images; `outside`
    bool (N, A).
    """
    longest = max(len(each) for each in boxes)
    chunk = max(1, PAIRS // (max(longest, 1) * len(anchors)))
    matched = torch.cat(
        [
            _match(
                padded(boxes[start : start + chunk]),
                anchors,
                high,
                low,
                None if outside is None else outside[start : start + chunk],
            )
            for start in range(0, len(boxes), chunk)
        ]
    )
    for row, regions in zip(matched, crowds, strict=True):
        if len(regions):
            row[(row == BACKGROUND) & covered(anchors, regions)] = IGNORED
    return matched


def _match(boxes: Tensor, anchors: Tensor, high: float, low: float, outside: Tensor | None) -> Tensor:
    """`boxes` (N, P, 4), of which rows without area stand for none."""
    iou = _iou(boxes, anchors)  # (N, P, A)
    if outside is not None:
        iou = iou.masked_fill(outside[:, None], 0)
    best, box = iou.max(dim=1)
    matched = box.where(best >= high, IGNORED).where(best >= low, BACKGROUND)
    most = iou.amax(dim=2, keepdim=True)
    chosen = ((iou == most) & (most > 0)).any(dim=1)
    matched = box.where(chosen, matched)
    return matched if outside is None else matched.masked_fill(outside, IGNORED)


def beyond(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Whether each anchor's centre lies beyond each image, the image being rounded up to 32 pixels; bool (N, A).

    So mmdetection has it. Shapes: `anchors` (A, 4), `sizes` (N, 2), height and width in pixels.
    """
    height, width = ((sizes + 31) // 32 * 32).unbind(1)
    x, y = (anchors[:, :2] + anchors[:, 2:]).div(2).unbind(1)
    return (x >= width[:, None]) | (y >= height[:, None])


def unsuppressed(anchors: Tensor, threshold: float, enough: int | None, hardness: Tensor) -> Tensor:
    """Whether an anchor overlaps none that is harder by an IoU above `threshold`; bool (N, A).

    Of each image's hardest `CANDIDATES`, or of so many of them as leave `enough`; the rest is false.
    Shapes: `anchors` (A, 4), `hardness` (N, A).
    """
    most = min(CANDIDATES, hardness.shape[1])
    order = hardness.topk(most, dim=1).indices
    kept = torch.zeros_like(hardness, dtype=torch.bool)
    for row, values, places in zip(kept, hardness, order, strict=True):
        number = most if enough is None else min(4 * enough, most)
        # What is less hard suppresses nothing that is harder, so the first ones are final.
        while len(left := nms(anchors[places[:number]], values[places[:number]], threshold)) < (enough or 0):
            if number == most:
                break
            number = min(2 * number, most)
        row[places[left]] = True
    return kept


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(N, P, A), in the arithmetic of torchvision's box_iou."""
    inter = _intersection(boxes[:, :, None], anchors)
    return inter / (_area(boxes)[:, :, None] + _area(anchors) - inter)


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether more than half of each box lies in one of the regions; bool (B,)."""
    inside = _intersection(regions[:, None], boxes)  # (Q, B)
    return (inside > 0.5 * _area(boxes)).any(dim=0)


def padded(parts: list[Tensor], fill: float = 0.0) -> Tensor:
    """Rows of different number side by side: N x (P_i, ...) becomes (N, P, ...) with P at least 1."""
    longest = max(max(len(part) for part in parts), 1)
    joined = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), fill)
    for row, part in zip(joined, parts, strict=True):
        row[: len(part)] = part
    return joined


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    # Each side by itself: a last dimension of two is slow to walk.
    width, height = (
        torch.minimum(a[..., side + 2], b[..., side + 2]) - torch.maximum(a[..., side], b[..., side]) for side in (0, 1)
    )
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
