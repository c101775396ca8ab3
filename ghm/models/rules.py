"""The numbers around a detector's losses: which anchors it has, what they are trained towards, what is returned."""

from typing import Any, TypedDict, Unpack

# Anchors of three sizes an octave (Lin et al. 2017).
OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


class Inference(TypedDict, total=False):
    """Which of its boxes a detector returns.

    `score_thresh`: those that score less are left out. `nms_thresh`: IoU of two of a class, above which the one
    that scores less is left out. `detections_per_img`: so many an image at most; COCO scores 100.
    """

    score_thresh: float
    nms_thresh: float
    detections_per_img: int


class Rules(Inference, total=False):
    """Those of RetinaNet.

    `topk_candidates`: boxes of each pyramid level that NMS looks at. `fg_iou_thresh`: IoU with a box from which
    an anchor is an example of it; `bg_iou_thresh`: below which it is background; between, it is ignored.
    `anchor_sizes`: side in pixels for each level; `anchor_scales` times that, in each of `aspect_ratios`
    (height to width), are its anchors. `train_padding`: whether anchors on what fills an image up to the size
    of its batch are background, as in torchvision; False: they are ignored, as in mmdetection.
    """

    topk_candidates: int
    fg_iou_thresh: float
    bg_iou_thresh: float
    anchor_sizes: list[int]
    anchor_scales: list[float]
    aspect_ratios: list[float]
    train_padding: bool


DEFAULTS: Rules = {
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "detections_per_img": 100,
    "topk_candidates": 1000,
    "fg_iou_thresh": 0.5,
    "bg_iou_thresh": 0.4,
    "anchor_scales": list(OCTAVES),
    "aspect_ratios": [0.5, 1.0, 2.0],
    "train_padding": True,
}


def checked(levels: int | None = None, **given: Unpack[Rules]) -> Rules:
    """What is given, over `DEFAULTS`. ValueError `key=value: rule`; `levels` of the pyramid need a size each."""
    rules: Any = DEFAULTS | given
    for key, value in rules.items():
        if key.endswith("_thresh") and not (_number(value) and 0 <= value <= 1):
            raise ValueError(f"{key}={value}: must lie in [0, 1]")
        if key in ("detections_per_img", "topk_candidates") and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{key}={value}: must be a whole number of 1 or more")
        if key.startswith(("anchor_", "aspect_")) and not (value and all(_number(one) and one > 0 for one in value)):
            raise ValueError(f"{key}={value}: must be numbers above 0, as in [1.0, 1.5]")
    if rules["bg_iou_thresh"] > rules["fg_iou_thresh"]:
        raise ValueError(
            f"bg_iou_thresh={rules['bg_iou_thresh']}: must not be above fg_iou_thresh={rules['fg_iou_thresh']}"
        )
    if levels is not None and len(rules["anchor_sizes"]) != levels:
        raise ValueError(f"anchor_sizes={rules['anchor_sizes']}: must be one for each of the {levels} pyramid levels")
    made: Rules = rules
    return made


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
