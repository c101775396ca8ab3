"""Annotations made wrong on purpose, by seed: GHM claims to withstand outliers, and this is how to measure it."""

from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ghm.data.annotations import index

SHIFT = (0.5, 1.0)  # of the box's side, both ways: where there is room, IoU with the true box is below 0.15


def noisy(coco: COCO, share: float, seed: int) -> COCO:
    """The same data with another class and a shifted box for about `share` of its objects.

    Whether an object is chosen, and what becomes of it, does not depend on the share: what is wrong at 0.1
    is so at 0.2 too. Shifted boxes keep their size and stay in the image. Crowds are left alone. Where
    there is one class, only boxes change.
    """
    check_share(share)
    if share == 0:
        return coco
    images, annotations = coco.imgs, coco.dataset["annotations"]
    categories = sorted(coco.cats)
    draws = np.random.default_rng(seed).random((len(annotations), 6))
    content = coco.dataset | {
        "annotations": [
            _wrong(annotation, images[annotation["image_id"]], categories, draw[1:].tolist())
            if draw[0] < share and not annotation["iscrowd"]
            else annotation
            for annotation, draw in zip(annotations, draws, strict=True)
        ]
    }
    return index(content)


def check_share(share: float) -> None:
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"label_noise={share}: must be a share of the annotations, in [0, 1]")


def _wrong(
    annotation: dict[str, Any], image: dict[str, Any], categories: list[int], draws: list[float]
) -> dict[str, Any]:
    others = [category for category in categories if category != annotation["category_id"]] or categories
    x, y, width, height = annotation["bbox"]
    x = _shifted(x, width, image["width"], draws[1:3])
    y = _shifted(y, height, image["height"], draws[3:5])
    return annotation | {
        "category_id": others[int(draws[0] * len(others))],
        "bbox": [x, y, width, height],
        "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
    }


def _shifted(start: float, side: float, extent: float, draws: list[float]) -> float:
    """`start` moved by a share of `side`, the other way round where the image ends, as far as there is room."""
    shift = (SHIFT[0] + (SHIFT[1] - SHIFT[0]) * draws[0]) * side * (1 if draws[1] < 0.5 else -1)
    room = max(extent - side, 0.0)
    for moved in (start + shift, start - shift):
        if 0 <= moved <= room:
            return moved
    return 0.0 if start > room / 2 else room
