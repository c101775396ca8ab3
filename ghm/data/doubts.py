"""Well-formed data whose numbers would be worth nothing: said, or refused where it cannot be meant."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ghm.data.findings import Findings

MANY = 4  # boxes from which on a file's habits can be told
TAIL = 4096  # bytes at the end of two files of equal size that are compared first


def refuse_other_boxes(path: Path, content: dict[str, Any]) -> None:
    """ValueError where boxes are plainly not x, y, width, height in pixels, but fractions or two corners."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    rows = [(*a["bbox"], *sizes[a["image_id"]]) for a in content["annotations"] if _is_four(a["bbox"])]
    if not rows:
        return
    x, y, width, height, image_width, image_height = np.array(rows, dtype=float).T
    first = content["annotations"][0]
    example = f"annotation {first['id']}: bbox={first['bbox']}"
    sides = np.array([x, y, width, height])
    in_unit = (sides >= 0).all() and (sides <= 1.001).all() and (sides % 1 > 0).any()
    if in_unit and len(rows) == len(content["annotations"]):
        raise ValueError(
            f"{path}: its {len(rows)} boxes are fractions of the image (first: {example}); "
            "write x, y, width, height in pixels: times the image's width and height"
        )
    as_corners = (width > x) & (height > y) & (width <= image_width + 1) & (height <= image_height + 1)
    if len(rows) < MANY or as_corners.mean() < 0.99:
        return
    leaving = ((x + width > image_width + 1) | (y + height > image_height + 1)).mean()
    # Large boxes are wider than far from the edge, too; but the further right they begin, the less wide they can be.
    growing = min(
        _correlation(x / image_width, width / image_width), _correlation(y / image_height, height / image_height)
    )
    if leaving >= 0.25 or (len(rows) >= 2 * MANY and growing > 0.3):
        raise ValueError(
            f"{path}: its {len(rows)} boxes are corners x1, y1, x2, y2 (first: {example}); "
            "write x, y, width, height: x1, y1, x2 - x1, y2 - y1"
        )


def _is_four(box: list[Any]) -> bool:
    return len(box) == 4 and all(isinstance(side, int | float) and abs(side) < 1e9 for side in box)


def _correlation(one: Any, other: Any) -> float:
    if min(one.std(), other.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def look_into(coco: COCO, findings: Findings) -> None:
    """What one annotation file says twice."""
    names: dict[str, int] = {}
    for category in coco.dataset["categories"]:
        if (other := names.setdefault(category["name"], category["id"])) != category["id"]:
            findings.add("two categories of one name", f"{other} and {category['id']} are both {category['name']!r}")
    files: dict[str, int] = {}
    for image in coco.dataset["images"]:
        if (other := files.setdefault(image["file_name"], image["id"])) != image["id"]:
            findings.add("images listed twice", f"{other} and {image['id']} are both {image['file_name']!r}")
    boxes: dict[tuple[Any, ...], int] = {}
    for annotation in coco.dataset["annotations"]:
        same = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        if (other := boxes.setdefault(same, annotation["id"])) != annotation["id"]:
            example = f"annotations {other} and {annotation['id']} on image {annotation['image_id']}"
            findings.add("the same box of the same class twice on an image", example)


def refuse_crowds_alone(path: Path, coco: COCO) -> None:
    """ValueError for a training split in which no single object is marked."""
    if coco.anns and all(annotation["iscrowd"] for annotation in coco.anns.values()):
        raise ValueError(
            f"{path}: its {len(coco.anns)} boxes are all crowds (iscrowd=1), from which nothing is learned; "
            "set iscrowd=0 where a box is around one object"
        )


def compare_classes(train: COCO, val: COCO, findings: Findings) -> None:
    """What classes have boxes in one split only, or in none."""
    counts = [Counter(a["category_id"] for a in coco.anns.values() if not a["iscrowd"]) for coco in (train, val)]
    for category in sorted({**train.cats, **val.cats}):
        learned, scored = (count[category] for count in counts)
        example = f"{category} {(train.cats.get(category) or val.cats[category])['name']!r}"
        if not learned and not scored:
            findings.add("categories that no box has, each a class that is never seen", example)
        elif not learned:
            findings.add("classes of val that train has no box of: nothing can learn them", example)
        elif not scored and val.anns:
            findings.add("classes of train that val has no box of: AP is over the others", example)


def refuse_overlap(root: Path, train: Iterable[Path], val: Iterable[Path]) -> None:
    """ValueError where an image is in train and val: the same file, or the same bytes under another name."""
    pairs = list(_same(list(train), list(val)))
    if pairs:
        one, other = pairs[0]
        raise ValueError(
            f"data.root={root}: {len(pairs)} images of val are in train too (first: {other} is {one}): "
            "scores would say nothing of new images; take them out of one, or allow it with data.allow_overlap=true"
        )


def _same(train: list[Path], val: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Pairs of equal files. Few are read, and most of these only at their end: all others differ in size."""
    by_size: dict[int, list[Path]] = {}
    sizes = {file.stat().st_size for file in val}
    for file in train:
        if (size := file.stat().st_size) in sizes:
            by_size.setdefault(size, []).append(file)
    digests: dict[Path, tuple[bytes, bytes]] = {}
    for file in val:
        for other in by_size.get(file.stat().st_size, ()):
            if file.samefile(other) or (
                _tail(file, digests) == _tail(other, digests) and _digest(file) == _digest(other)
            ):
                yield other, file
                break


def _tail(file: Path, known: dict[Path, Any]) -> bytes:
    if file not in known:
        with file.open("rb") as content:
            content.seek(max(file.stat().st_size - TAIL, 0))
            known[file] = hashlib.sha256(content.read()).digest()
    digest: bytes = known[file]
    return digest


def _digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
