"""Average precision as COCO defines it, through pycocotools."""

import contextlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

Detection = dict[str, Any]
# Places in COCOeval.stats; AP60 to AP90 follow from its precision table.
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}
THRESHOLDS = {"AP60": 0.6, "AP70": 0.7, "AP80": 0.8, "AP90": 0.9}
METRICS = (*STATS, *THRESHOLDS)


@torch.no_grad()
def detect(
    model: Callable[[list[Tensor]], list[dict[str, Tensor]]],
    batches: Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]],
    category_ids: list[int],
    device: torch.device,
) -> list[Detection]:
    """What a model in evaluation mode finds, in COCO's result format (boxes as x, y, width, height)."""
    found: list[Detection] = []
    for images, targets in batches:
        outputs = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            corners = output["boxes"].cpu()
            boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
            image_id = int(target["image_id"])
            for box, score, label in zip(boxes, output["scores"].tolist(), output["labels"].tolist(), strict=True):
                found.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    return found


def score(coco: COCO, detections: list[Detection]) -> dict[str, float]:
    """AP, AP50, AP60 .. AP90, AP75, APs, APm, APl in [0, 1]; absent where there is no such object."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco, coco.loadRes([dict(found) for found in detections]) if detections else COCO(), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = {name: float(evaluation.stats[place]) for name, place in STATS.items()}
    precision = evaluation.eval["precision"]  # (IoU, recall, category, area, detections per image)
    for name, threshold in THRESHOLDS.items():
        place = int(np.argmin(np.abs(evaluation.params.iouThrs - threshold)))
        values = precision[place, :, :, 0, -1]
        scores[name] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
    return {name: value for name, value in scores.items() if value >= 0}


def chance(coco: COCO, seed: int = 0) -> list[Detection]:
    """Detections that know everything but the image: each gets another image's true boxes, in full.

    A model that does not beat their score has learned the data's statistics at best. Of a single image
    there is no other: no detections.
    """
    rng = np.random.default_rng(seed)
    image_ids = sorted(coco.getImgIds())
    if len(image_ids) < 2:
        return []
    shift = 1 + int(rng.integers(max(len(image_ids) - 1, 1)))
    found = []
    for image_id, other in zip(image_ids, np.roll(image_ids, shift).tolist(), strict=True):
        for annotation in coco.imgToAnns[other]:
            result = {key: annotation[key] for key in ("category_id", "bbox")}
            found.append(result | {"image_id": image_id, "score": float(rng.random())})
    return found
