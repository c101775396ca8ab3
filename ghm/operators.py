"""Lets torchvision import beside a CPU-only torch.

torchvision's published wheels carry operators linked against CUDA. Beside a CPU build of torch that
library does not load, and `import torchvision` stops at "operator torchvision::nms does not exist".
Imported before torchvision (by `ghm.data` and `ghm.models`), this module then defines the two
operators that the import asks for, and RoIAlign, for which torchvision's own stand-in is too slow to
train with. Where the operators exist, it changes nothing.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # boxes compared at a time: bounds the IoU matrix to BLOCK x number of boxes
TAPS = 1 << 23  # pixels looked up at a time: bounds their indices and weights to some 300 MB


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


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (He et al. 2017, Mask R-CNN, section 3) with the semantics of torchvision's C++ operator.

    A bin is the mean of bilinear samples, sampling_ratio in each direction, or, if that is not positive,
    at least one per pixel. So it is a weighted sum of pixels: one bag of an `embedding_bag` over them all.

    Shapes: input (N, C, H, W); rois (K, 5) as image, x1, y1, x2, y2 in pixels / spatial_scale, which get
    no gradient. Returns (K, C, pooled_height, pooled_width) of the input's dtype, channels last in memory.
    """
    dtype = torch.promote_types(input.dtype, torch.float32)  # coordinates need more than a half type has
    pixels = input.to(dtype).permute(0, 2, 3, 1).contiguous()  # no copy where channels are last already
    rois = rois.detach().to(dtype)
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1)
    bins = (pooled_height, pooled_width)
    if sampling_ratio > 0:
        samples = torch.full_like(size, sampling_ratio)
    else:
        samples = (size / size.new_tensor(bins)).ceil().clamp(min=0)
    pooled = sum_bags(pixels, torch.cat([rois[:, :1], start, size], dim=1), samples.long(), bins)
    return pooled.view(len(rois), *bins, input.shape[1]).permute(0, 3, 1, 2).to(input.dtype)


def sum_bags(pixels: Tensor, places: Tensor, samples: Tensor, bins: tuple[int, int]) -> Tensor:
    """Sum up every bin of every RoI.

    Shapes: pixels (N, H, W, C); places (K, 5) as image, y, x, height, width on the map; samples (K, 2) of a
    bin in y and x. Returns (K * bins, C).
    """
    table = pixels.flatten(0, 2)
    if len(places) == 0:
        return table[:0]
    if 4 * bins[0] * bins[1] * int(samples.prod(dim=1).sum()) > TAPS and len(places) > 1:
        halves = zip(places.chunk(2), samples.chunk(2), strict=True)
        return torch.cat([sum_bags(pixels, *half, bins) for half in halves])
    grids, counts = samples.unique_consecutive(dim=0, return_counts=True)  # neighbours sampled alike
    runs = zip(places.split(counts.tolist()), grids.tolist(), strict=True)
    parts = [bags(run, bins, grid, pixels.shape) for run, grid in runs]
    sizes = torch.cat([indices.new_full((len(indices),), indices.shape[1]) for indices, _ in parts])
    return F.embedding_bag(
        torch.cat([indices.flatten() for indices, _ in parts]),
        table,
        offsets=sizes.cumsum(0) - sizes,
        mode="sum",
        per_sample_weights=torch.cat([weights.flatten() for _, weights in parts]),
    )


def bags(places: Tensor, bins: tuple[int, int], samples: list[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Which pixels each bin sums, and their weights, (K * bins, 4 * samples), of RoIs that are sampled alike."""
    image, y, x, height, width = places.unbind(dim=1)
    rows, row_weights = taps_along(y, height, bins[0], samples[0], shape[1])
    columns, column_weights = taps_along(x, width, bins[1], samples[1], shape[2])
    rows = (rows + image.long()[:, None, None] * shape[1]) * shape[2]
    indices = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    return indices.flatten(3).flatten(0, 2), weights.flatten(3).flatten(0, 2)


def taps_along(start: Tensor, size: Tensor, bins: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each sample along one axis, and their weights: both (K, bins, 2 * samples)."""
    step = (size / bins)[:, None, None]
    nth = torch.arange(bins, device=size.device)[:, None]
    middle = torch.arange(samples, device=size.device) + 0.5
    at = start[:, None, None] + nth * step + middle * step / samples
    inside = (at >= -1) & (at <= length)
    at = at.where(inside, 0).clamp(0, length - 1)
    low = at.floor()
    high = (low + 1).clamp(max=length - 1)
    # On the last pixel low = high and the whole weight is on low, whatever lies beyond it.
    weights = torch.stack([low + 1 - at, at - low], dim=3) * inside[..., None] / samples
    return torch.stack([low, high], dim=3).flatten(2).long(), weights.flatten(2)


def define_missing() -> bool:
    """Define `torchvision::nms`, `::qnms`, `::roi_align` if torchvision cannot load its own; whether it had to."""
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
    torch.library.define(
        "torchvision::roi_align",
        "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
        " int sampling_ratio, bool aligned) -> Tensor",
    )
    # Implicit: autograd goes through what it is composed of.
    torch.library.impl("torchvision::roi_align", "CompositeImplicitAutograd", roi_align)

    import torchvision.ops.boxes

    # torchvision calls its operators only if its whole library is loaded. The two modules that need no
    # more than these are told so; elsewhere `extension._has_ops` still says no.
    align: Any = importlib.import_module("torchvision.ops.roi_align")  # torchvision.ops.roi_align is the function
    torchvision.ops.boxes._assert_has_ops = align._assert_has_ops = lambda: None
    align._has_ops = lambda: True
    return True


DEFINED = define_missing()
