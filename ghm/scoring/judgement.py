"""What COCO says of detections: the numbers, the curves under them, and the finds and misses behind."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

Array = NDArray[np.float64]
# In the order of COCOeval.stats; AP60 to AP90, of the paper's Table 6, follow from its precision table.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
THRESHOLDS = {"AP60": 0.6, "AP70": 0.7, "AP80": 0.8, "AP90": 0.9}
METRICS = (*STATS, *THRESHOLDS)


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
