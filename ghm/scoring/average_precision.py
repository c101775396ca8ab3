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

from ghm.scoring.judgement import Judgement

Detection = dict[str, Any]


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
        boxes, scores, labels = (torch.cat([o[key].float() for o in outputs]) for key in ("boxes", "scores", "labels"))
        sizes = boxes[:, 2:] - boxes[:, :2]
        # One transfer a batch: each waits for the device.
        rows = torch.cat([boxes[:, :2], sizes, scores[:, None], labels[:, None]], dim=1).tolist()
        owners = [int(t["image_id"]) for t, o in zip(targets, outputs, strict=True) for _ in range(len(o["scores"]))]
        for image_id, (*box, score, label) in zip(owners, rows, strict=True):
            category = category_ids[int(label)]
            found.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
    return found


def results(detections: list[Detection]) -> list[Detection]:
    """The detections as COCO's server takes them in JSON: boxes to 1/100 pixel, scores to 5 digits."""
    return [
        {
            "image_id": int(found["image_id"]),
            "category_id": int(found["category_id"]),
            "bbox": [round(float(side), 2) for side in found["bbox"]],
            "score": round(float(found["score"]), 5),
        }
        for found in detections
    ]


def score(coco: COCO, detections: list[Detection]) -> dict[str, float]:
    """The `METRICS`, in [0, 1]; absent where there is no such object. ValueError as `judge`."""
    return judge(coco, detections).numbers


def judge(coco: COCO, detections: list[Detection]) -> Judgement:
    """Compare detections with the true boxes as COCO does.

    ValueError when there are no true boxes, or detections on images that are not among `coco`'s.
    """
    if not coco.anns:
        raise ValueError(
            "annotations=none: a list of images without true boxes (as test-dev's) has no score; "
            "write results(detections) to a file and send it to COCO's server"
        )
    if strangers := {found["image_id"] for found in detections} - coco.imgs.keys():
        raise ValueError(f"image_id={min(strangers)}: is not among the annotated images; score the split detected on")
    found = COCO()
    found.dataset = {key: coco.dataset[key] for key in ("images", "categories")} | {
        # Numbered from 1: to pycocotools id 0 is "matched with nothing".
        "annotations": [
            one | {"id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
            for number, one in enumerate(detections, start=1)
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        evaluation = _Evaluation(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Judgement(evaluation)


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


class _Evaluation(COCOeval):
    """COCOeval, whose own matching takes most of its time for pairs that overlap too little to match."""

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        """The same entry of `evalImgs`, to the bit: one class in one image and area range, or None."""
        gt, dt = self._gts[imgId, catId], self._dts[imgId, catId]
        if not gt and not dt:
            return None
        ignored = np.array([int(g["ignore"] or not aRng[0] <= g["area"] <= aRng[1]) for g in gt], dtype=int)
        order = np.argsort(ignored, kind="mergesort")  # those that count first
        gt, ignored = [gt[i] for i in order], ignored[order]
        dt = [dt[i] for i in np.argsort([-d["score"] for d in dt], kind="mergesort")[:maxDet]]
        thresholds = np.minimum(self.params.iouThrs, 1 - 1e-10).tolist()
        gt_matches, dt_matches = (np.zeros((len(thresholds), len(side))) for side in (gt, dt))
        dt_ignored = np.zeros(dt_matches.shape, dtype=bool)
        dt_ignored[:] = [not aRng[0] <= d["area"] <= aRng[1] for d in dt]  # unless matched
        near: dict[int, list[tuple[bool, float, int]]] = {}
        ious = self.ious[imgId, catId][:, order] if gt and dt else np.zeros((0, 0))
        for d, g in np.argwhere(ious >= thresholds[0]).tolist():
            near.setdefault(d, []).append((not ignored[g], float(ious[d, g]), g))
        for t, threshold in enumerate(thresholds):
            for d, pairs in near.items():
                free = [pair for pair in pairs if gt[pair[2]]["iscrowd"] or not gt_matches[t, pair[2]]]
                if free := [pair for pair in free if pair[1] >= threshold]:
                    counts, _, g = max(free)  # one that counts before an ignored one, then by overlap, then the last
                    gt_matches[t, g], dt_matches[t, d], dt_ignored[t, d] = dt[d]["id"], gt[g]["id"], not counts
        where = {"image_id": imgId, "category_id": catId, "aRng": aRng, "maxDet": maxDet}
        truth = {"gtIds": [g["id"] for g in gt], "gtMatches": gt_matches, "gtIgnore": ignored}
        found = {"dtIds": [d["id"] for d in dt], "dtScores": [d["score"] for d in dt], "dtMatches": dt_matches}
        return where | truth | found | {"dtIgnore": dt_ignored}
