"""Lets torchvision import beside a CPU-only torch.

torchvision's published wheels carry operators linked against CUDA. Beside a CPU build of torch that
library does not load, and `import torchvision` stops at "operator torchvision::nms does not exist".
Imported before torchvision (by `ghm.data` and `ghm.models`), this module then defines the two
operators that the import asks for. Where the operators exist, it changes nothing.
"""

import torch
from torch import Tensor

BLOCK = 1024  # boxes compared at a time: bounds the IoU matrix to BLOCK x number of boxes


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression with the semantics of torchvision's CPU operator.

    A box falls when its IoU with a kept box of higher score exceeds the threshold; equal scores
    keep their order. The greedy answer is the fixed point of "kept unless a kept earlier box
    overlaps"; each round settles at least one more box of a block, in practice nearly all.

    Shapes: dets (N, 4) as x1, y1, x2, y2; scores (N,). Returns kept indices (K,), best first.
    """
    order = scores.sort(stable=True, descending=True).indices
    boxes = dets[order]
    kept: list[Tensor] = []
    for block in torch.arange(len(boxes), device=boxes.device).split(BLOCK):
        for earlier in kept:
            block = block[~overlapping(boxes[earlier], boxes[block], iou_threshold).any(dim=0)]
        beats = overlapping(boxes[block], boxes[block], iou_threshold).triu(diagonal=1)
        alive = torch.ones(len(block), dtype=torch.bool, device=boxes.device)
        while True:
            settled = ~(beats & alive[:, None]).any(dim=0)
            if torch.equal(settled, alive):
                break
            alive = settled
        kept.append(block[alive])
    return order[torch.cat(kept)] if kept else order


def overlapping(a: Tensor, b: Tensor, iou_threshold: float) -> Tensor:
    """Whether IoU(a_i, b_j) > threshold, bool (len(a), len(b)); in the operator's own arithmetic."""
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    corner = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    inter = corner.clamp(min=0).prod(dim=2)
    # The operator compares in double precision.
    return (inter / (area_a[:, None] + area_b - inter)).double() > iou_threshold


def qnms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The same for the integer representation of quantized boxes and scores."""
    return nms(dets.float(), scores.float(), iou_threshold)


def define_missing() -> bool:
    """Define `torchvision::nms` and `::qnms` if torchvision cannot load its own; whether it had to."""
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    else:
        return False
    for operator in (nms, qnms):
        name = f"torchvision::{operator.__name__}"
        torch.library.define(name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.impl(name, "CompositeExplicitAutograd", operator)
    import torchvision.ops.boxes

    # torchvision refuses to call nms unless its whole library is loaded; only nms is needed here,
    # and roi_align keeps to its Python path because `extension._has_ops` still says no.
    torchvision.ops.boxes._assert_has_ops = lambda: None
    return True


DEFINED = define_missing()
