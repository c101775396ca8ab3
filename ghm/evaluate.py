"""Average precision as COCO defines it, through pycocotools, and the finds and misses behind it."""

import contextlib
import io
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

Detection = dict[str, Any]
Array = NDArray[np.float64]
# In the order of COCOeval.stats; AP60 to AP90, of the paper's Table 6, follow from its precision table.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
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


def judge(coco: COCO, detections: list[Detection]) -> "Judgement":
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


class Found(NamedTuple):
    """A detection: box x, y, width, height in pixels; verdict right, wrong, or ignored (inside a crowd)."""

    box: tuple[float, ...]
    category_id: int
    score: float
    verdict: str


class Truth(NamedTuple):
    """A true box: x, y, width, height in pixels; verdict found, missed, or ignored (a crowd)."""

    box: tuple[float, ...]
    category_id: int
    verdict: str


class Mistakes(NamedTuple):
    """An image's detections, highest score first, and its true boxes."""

    image_id: int
    found: list[Found]
    truths: list[Truth]

    @property
    def wrong(self) -> list[Found]:
        return [found for found in self.found if found.verdict == "wrong"]

    @property
    def missed(self) -> list[Truth]:
        return [truth for truth in self.truths if truth.verdict == "missed"]


class Curves(NamedTuple):
    """Precision (101,) over `recall` (101,): by IoU threshold as the `mean` over the classes that have
    objects, and at IoU 0.5 `per_class`, by category id. Empty where nothing has objects."""

    recall: Array
    mean: dict[float, Array]
    per_class: dict[int, Array]


class Judgement:
    """What COCO says of detections. `numbers` are the `METRICS`; absent where there is no such object."""

    def __init__(self, evaluation: COCOeval) -> None:
        """`evaluation`: evaluated, accumulated and summarized."""
        self._evaluation = evaluation
        # (IoU, recall, category) and (IoU, category), for all areas and 100 detections of a class an image.
        self._precision: Array = evaluation.eval["precision"][:, :, :, 0, -1]
        self._recall: Array = evaluation.eval["recall"][:, :, 0, -1]
        numbers = dict(zip(STATS, evaluation.stats.tolist(), strict=True))
        numbers |= {name: _mean(self._precision[self._place(iou)]) for name, iou in THRESHOLDS.items()}
        self.numbers: dict[str, float] = {name: value for name, value in numbers.items() if value >= 0}

    def _place(self, iou: float) -> int:
        [places] = np.nonzero(np.abs(self._evaluation.params.iouThrs - iou) < 1e-6)
        if not len(places):
            raise ValueError(f"iou={iou}: COCO matches at 0.5, 0.55, ... 0.95; choose one of these")
        return int(places[0])

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """By category id: category_id, name, objects (without crowds), AP, AP50, AP75, AR100 (None without objects)."""
        coco, rows = self._evaluation.cocoGt, []
        objects = dict.fromkeys(self._evaluation.params.catIds, 0)
        for annotation in coco.anns.values():
            objects[annotation["category_id"]] += not annotation.get("iscrowd")
        for k, (category, count) in enumerate(objects.items()):
            ap, recall = self._precision[:, :, k], self._recall[:, k]
            parts = {"AP": ap, "AP50": ap[self._place(0.5)], "AP75": ap[self._place(0.75)], "AR100": recall}
            numbers = {name: None if (value := _mean(part)) < 0 else value for name, part in parts.items()}
            rows.append({"category_id": int(category), "name": coco.cats[category]["name"], "objects": count} | numbers)
        return rows

    @cached_property
    def precision_recall(self) -> Curves:
        """The curves under which AP is the area."""
        params = self._evaluation.params
        [present] = np.nonzero(self._precision[0, 0] > -1)
        ious = [round(float(iou), 2) for iou in params.iouThrs] if len(present) else []
        mean = {iou: self._precision[t][:, present].mean(axis=1) for t, iou in enumerate(ious)}
        at50 = self._precision[self._place(0.5)]
        return Curves(params.recThrs, mean, {int(params.catIds[k]): at50[:, k] for k in present})

    def mistakes(self, iou: float = 0.5, min_score: float = 0.0) -> list[Mistakes]:
        """What was found and missed, image by image (by id), as COCO matched it for the score.

        `min_score`: as if no detection scored less. That is exact: those above were matched before them.
        """
        evaluation, place = self._evaluation, self._place(iou)
        found, truths = evaluation.cocoDt.anns, evaluation.cocoGt.anns
        images = {int(image_id): Mistakes(int(image_id), [], []) for image_id in evaluation.params.imgIds}
        everywhere = evaluation.params.areaRng[0]
        for one in (one for one in evaluation.evalImgs if one is not None and one["aRng"] == everywhere):
            image, category = images[int(one["image_id"])], int(one["category_id"])
            for number, match, out in zip(one["dtIds"], one["dtMatches"][place], one["dtIgnore"][place], strict=True):
                if (points := found[number]["score"]) >= min_score:
                    verdict = "ignored" if out else "right" if match else "wrong"
                    image.found.append(Found(tuple(found[number]["bbox"]), category, points, verdict))
            for number, match, out in zip(one["gtIds"], one["gtMatches"][place], one["gtIgnore"], strict=True):
                hit = match and found[int(match)]["score"] >= min_score
                verdict = "ignored" if out else "found" if hit else "missed"
                image.truths.append(Truth(tuple(truths[number]["bbox"]), category, verdict))
        for image in images.values():
            image.found.sort(key=lambda one: -one.score)
        return list(images.values())

    def false_positives(self, iou: float = 0.5, min_score: float = 0.0) -> list[Mistakes]:
        """The images with wrong detections, the one with the highest-scored first."""
        images = [image for image in self.mistakes(iou, min_score) if image.wrong]
        return sorted(images, key=lambda image: -image.wrong[0].score)

    def misses(self, iou: float = 0.5, min_score: float = 0.0) -> list[Mistakes]:
        """The images with missed objects, most missed first; of equally many, the larger in all first."""
        images = [image for image in self.mistakes(iou, min_score) if image.missed]
        return sorted(images, key=lambda image: (-len(image.missed), -sum(t.box[2] * t.box[3] for t in image.missed)))


def _mean(values: Array) -> float:
    """As COCO takes it: over what is there (-1 marks what is not); -1 when nothing is."""
    there = values[values > -1]
    return float(there.mean()) if len(there) else -1.0


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
