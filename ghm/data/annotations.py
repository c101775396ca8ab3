"""What a COCO annotation file must hold, checked as a whole before anything is trained on it."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

Entry = dict[str, Any]


def read(folder: Path, split: str) -> COCO:
    """The checked index of `annotations/instances_{split}.json` below `folder`.

    Missing crowd flags become 0 and missing areas those of the box. ValueError names the file, the
    entry and the remedy.
    """
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise ValueError(
            f"data.root={folder}: no {path.relative_to(folder)} there; point data.root at a folder with "
            "images/ and annotations/instances_train.json, instances_val.json"
        )
    try:
        content = json.loads(path.read_text())
        images, annotations, categories = content["images"], content["annotations"], content["categories"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO instances file ({error!r}); export it again") from error
    if not images or not annotations or not categories:
        counts = f"{len(images)} images, {len(annotations)} boxes, {len(categories)} categories"
        raise ValueError(f"{path}: {counts}; needs at least one of each")
    for kind, entries, keys in (
        ("category", categories, ("id", "name")),
        ("image", images, ("id", "file_name")),
        ("annotation", annotations, ("id", "image_id", "category_id", "bbox")),
    ):
        _check_entries(f"{path}: {kind}", entries, keys)
    _check_files(path, images, folder / "images")
    known = {
        kind: {entry["id"] for entry in entries} for kind, entries in (("image", images), ("category", categories))
    }
    for annotation in annotations:
        _check_annotation(f"{path}: annotation {annotation['id']}", annotation, known)
    _complete(annotations)
    return index(content)


def index(content: dict[str, Any]) -> COCO:
    """pycocotools' index over annotations in memory, without its chatter on stdout."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _check_entries(where: str, entries: list[Entry], keys: tuple[str, ...]) -> None:
    """Every entry has its keys, and an id of its own."""
    seen: set[Any] = set()
    for entry in entries:
        for key in keys:
            if entry.get(key) is None:
                raise ValueError(f"{where} {entry.get('id')}: has no {key}; add it or drop the entry")
        if entry["id"] in seen:
            raise ValueError(f"{where} {entry['id']}: id={entry['id']} is given twice; number the entries apart")
        seen.add(entry["id"])


def _check_files(path: Path, images: list[Entry], folder: Path) -> None:
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    missing = [entry for entry in images if entry["file_name"] not in present]
    if missing:
        first = missing[0]
        raise ValueError(
            f"{path}: image {first['id']} lists file_name={first['file_name']}, which is not in {folder} "
            f"({len(missing)} of {len(images)} missing); add the files or drop their entries"
        )


def _check_annotation(where: str, annotation: Entry, known: dict[str, set[Any]]) -> None:
    for kind, ids in known.items():
        value = annotation[f"{kind}_id"]
        if value not in ids:
            raise ValueError(f"{where}: {kind}_id={value} is not among the file's; correct it or drop the entry")
    box = annotation["bbox"]
    if len(box) != 4 or not all(isinstance(side, int | float) and math.isfinite(side) for side in box):
        raise ValueError(f"{where}: bbox={box} is not x, y, width, height; correct it or drop the entry")
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"{where}: bbox={box} has no area; correct it or drop the entry")


def _complete(annotations: list[Entry]) -> None:
    """Fill in what scoring needs. pycocotools takes id 0 for "matched with nothing", so ids start at 1."""
    first = min(annotation["id"] for annotation in annotations)
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation["id"] += max(1 - first, 0)
