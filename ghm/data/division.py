"""One annotation file divided into train and val, by image and stratified by class."""

import random
from collections.abc import Iterable
from typing import Any

from pycocotools.coco import COCO

from ghm.data.annotations import index

NOTHING = -1  # the class of images without a box, which both splits shall have, too


def divide(coco: COCO, share: float, seed: int) -> tuple[COCO, COCO]:
    """Train and val, of which val gets about `share` of the images, and of those of each class, as far as it goes.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011): the rarest class first, each of its images to
    the split that lacks most of it. The images of one file stay together. ValueError for a share that leaves
    one side without an image.
    """
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"val_share={share}: must be between 0 and 1, as 0.2")
    groups: dict[str, list[int]] = {}
    for image in coco.dataset["images"]:
        groups.setdefault(image["file_name"], []).append(image["id"])
    classes = {
        name: {a["category_id"] for image in images for a in coco.imgToAnns[image]} or {NOTHING}
        for name, images in sorted(groups.items())
    }
    chosen = _stratified(classes, share, seed)
    val = {image for name in chosen for image in groups[name]}
    train = coco.imgs.keys() - val
    if not train or not val:
        raise ValueError(f"val_share={share}: leaves no image on one side of {len(coco.imgs)}; choose another share")
    return _part(coco, train), _part(coco, val)


def _stratified(classes: dict[str, set[int]], share: float, seed: int) -> list[str]:
    """The names that go to val."""
    names = list(classes)
    random.Random(seed).shuffle(names)
    of_class: dict[int, list[str]] = {}
    for name in names:
        for category in classes[name]:
            of_class.setdefault(category, []).append(name)
    shares = (1 - share, share)
    lacking = {category: [len(having) * part for part in shares] for category, having in of_class.items()}
    room = [len(names) * part for part in shares]
    side: dict[str, int] = {}
    for category in sorted(of_class, key=lambda category: (len(of_class[category]), category)):
        for name in of_class[category]:
            if name in side:
                continue
            side[name] = max((0, 1), key=lambda part: (lacking[category][part], room[part]))
            room[side[name]] -= 1
            for other in classes[name]:
                lacking[other][side[name]] -= 1
    return [name for name in names if side[name] == 1]


def _part(coco: COCO, images: Iterable[int]) -> COCO:
    kept = set(images)
    content: dict[str, Any] = coco.dataset | {
        "images": [image for image in coco.dataset["images"] if image["id"] in kept],
        "annotations": [a for a in coco.dataset["annotations"] if a["image_id"] in kept],
    }
    return index(content)
