"""What a COCO annotation file must hold, checked as a whole before anything is trained on it."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from pycocotools.coco import COCO

Entry = dict[str, Any]
log = logging.getLogger(__name__)

FAR = 1e9  # pixels; neither NaN nor infinity is below
# Keys that only files of other tasks have.
OTHER_TASKS = {"caption": "captions", "segments_info": "panoptic segments", "score": "detections"}


def read(path: Path, invalid: Literal["error", "drop"] = "error", boxes: bool = True) -> COCO:
    """The checked index of an annotation file.

    Missing crowd flags become 0 and missing areas those of the box. Boxes that are none, have no area or
    leave their image are an error, or are left out with a warning (`invalid="drop"`, for files that one
    does not own). `boxes=False` reads a file that lists images alone, as that of COCO's test-dev.
    ValueError names the file, the entry and the remedy.
    """
    if invalid not in ("error", "drop"):
        raise ValueError(f"invalid={invalid}: must be error or drop")
    content = _content(path, boxes)
    images, categories, annotations = (content[key] for key in ("images", "categories", "annotations"))
    _check_entries(f"{path}: category", categories, {"name": str})
    _check_entries(f"{path}: image", images, {"file_name": str, "width": int, "height": int})
    _check_entries(f"{path}: annotation", annotations, {"image_id": int, "category_id": int, "bbox": list})
    for image in images:
        _check_image(f"{path}: image {image['id']}", image)
    content["annotations"] = _sound(path, content, drop=invalid == "drop")
    if boxes and not content["annotations"]:
        raise ValueError(f"{path}: {len(annotations)} boxes, none of them usable; export it again")
    _complete(content["annotations"])
    return index(content)


def index(content: dict[str, Any]) -> COCO:
    """pycocotools' index over annotations in memory, without its chatter on stdout."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def check_files(path: Path, coco: COCO, folder: Path) -> None:
    """Every image that the file at `path` lists lies in `folder`; ValueError names the first that does not."""
    images = coco.dataset["images"]
    missing = [entry for entry in images if not os.path.isfile(folder / entry["file_name"])]
    if missing:
        first = missing[0]
        raise ValueError(
            f"{path}: image {first['id']} lists file_name={first['file_name']!r}, which is not in {folder} "
            f"({len(missing)} of {len(images)} missing); add the files or drop their entries"
        )


def _content(path: Path, boxes: bool) -> dict[str, Any]:
    """The file's content with the three lists of an instances file; ValueError for a file of another kind."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole JSON file ({error}); export or fetch it again") from error
    annotated = content.get("annotations") if isinstance(content, dict) else content
    first = annotated[0] if isinstance(annotated, list) and annotated and isinstance(annotated[0], dict) else {}
    for key, what in OTHER_TASKS.items():
        if key in first and (content is annotated or "bbox" not in first):
            raise ValueError(f"{path}: holds {what}, not objects with boxes; give an instances file")
    if isinstance(content, dict) and not boxes:
        content.setdefault("annotations", [])
    keys = ("images", "annotations", "categories")
    lacking = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if lacking:
        raise ValueError(f"{path}: not a COCO instances file, it has no list of {lacking[0]}; export it again")
    images, annotations, categories = (content[key] for key in keys)
    if not images or not categories or (boxes and not annotations):
        counts = f"{len(images)} images, {len(annotations)} boxes, {len(categories)} categories"
        raise ValueError(f"{path}: {counts}; needs at least one of each")
    return content


def _check_entries(where: str, entries: list[Any], keys: dict[str, type]) -> None:
    """Every entry has its keys, of their types, and an id of its own."""
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where} number {place + 1}: is not a set of keys; export the file again")
        for key, kind in {"id": int, **keys}.items():
            value = entry.get(key)
            if value is None:
                raise ValueError(f"{where} {entry.get('id')}: has no {key}; add it or drop the entry")
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = {int: "a whole number", str: "a text", list: "a list"}[kind]
                raise ValueError(f"{where} {entry.get('id')}: {key}={value!r:.80}: must be {wanted}; correct it")
        if entry["id"] in seen:
            raise ValueError(f"{where} {entry['id']}: id={entry['id']} is given twice; number the entries apart")
        seen.add(entry["id"])


def _check_image(where: str, image: Entry) -> None:
    name = image["file_name"]
    path = PureWindowsPath(name)  # to it, / and \ and C: all mean something
    if ".." in path.parts or path.anchor or "\0" in name:
        raise ValueError(f"{where}: file_name={name!r}: leaves the folder of the images; correct it or drop the entry")
    if image["width"] < 1 or image["height"] < 1:
        raise ValueError(f"{where}: is {image['width']} x {image['height']} pixels; correct it or drop the entry")


def _sound(path: Path, content: dict[str, Any], drop: bool) -> list[Entry]:
    """The annotations with boxes that are some; ValueError for the first other one, unless they are dropped."""
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    sound, faults = [], []
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        for kind, ids in (("image", images), ("category", categories)):
            if (value := annotation[f"{kind}_id"]) not in ids:
                raise ValueError(f"{where}: {kind}_id={value} is not among the file's; correct it or drop the entry")
        for key in ("area", "iscrowd"):
            if not isinstance(value := annotation.get(key), int | float | None):
                raise ValueError(f"{where}: {key}={value!r:.80}: must be a number; correct it or leave it out")
        if (fault := next(_faults(annotation["bbox"], images[annotation["image_id"]]), None)) is None:
            sound.append(annotation)
        elif drop:
            faults.append(f"{where}: bbox={annotation['bbox']} {fault}")
        else:
            raise ValueError(
                f"{where}: bbox={annotation['bbox']} {fault}; correct it, or leave out all such with data.invalid=drop"
            )
    if faults:
        log.warning("%s (%d such left out)", faults[0], len(faults))
    return sound


def _faults(box: list[Any], image: Entry) -> Iterator[str]:
    if len(box) != 4 or not all(isinstance(side, int | float) and abs(side) < FAR for side in box):
        yield "is not x, y, width, height"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "has no area"
    # A pixel of rounding is common.
    if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        yield f"leaves its image of {image['width']} x {image['height']} pixels"


def _complete(annotations: list[Entry]) -> None:
    """Fill in what scoring needs. pycocotools takes id 0 for "matched with nothing", so ids start at 1."""
    first = min((annotation["id"] for annotation in annotations), default=1)
    for annotation in annotations:
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["id"] += max(1 - first, 0)
