"""What a COCO annotation file must hold, checked as a whole before anything is trained on it."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pycocotools.coco import COCO

from ghm.data import doubts, mending
from ghm.data.files import check_name
from ghm.data.findings import Findings

Entry = dict[str, Any]

FAR = 1e9  # pixels; neither NaN nor infinity is below
# Keys that only files of other tasks have.
OTHER_TASKS = {"caption": "captions", "segments_info": "panoptic segments", "score": "detections"}


def read(path: Path, findings: Findings, boxes: bool = True) -> dict[str, Any]:
    """The content of an annotation file: images, annotations and categories with all their keys but sizes and boxes.

    Whole numbers that are written as text or as 1.0 are read as such. `boxes=False` reads a file that
    lists images alone, as that of COCO's test-dev. ValueError names the file, the entry and the remedy.
    """
    content = _content(path, boxes)
    images, categories, annotations = (content[key] for key in ("images", "categories", "annotations"))
    for kind, entries, keys in (
        ("category", categories, ()),
        ("image", images, ("width", "height")),
        ("annotation", annotations, ("image_id", "category_id", "iscrowd")),
    ):
        mending.whole_numbers(kind, entries, ("id", *keys), findings)
    _check_entries(f"{path}: category", categories, {"name": str}, {})
    _check_entries(f"{path}: image", images, {"file_name": str}, {"width": int, "height": int})
    _check_entries(f"{path}: annotation", annotations, {"image_id": int, "category_id": int}, {"bbox": list})
    for image in images:
        check_name(f"{path}: image {image['id']}", image["file_name"])
    return content


def checked(
    path: Path, content: dict[str, Any], findings: Findings, invalid: Literal["error", "drop"] = "error"
) -> COCO:
    """pycocotools' index over what `read` returned, its boxes checked; every image must have its size by now.

    Missing crowd flags become 0, missing boxes those around the segmentation, missing areas those of the
    box. Boxes that are none, have no area or leave their image are an error, or are left out with a finding
    (`invalid="drop"`, for files that one does not own). ValueError names the file, the entry and the remedy.
    """
    if invalid not in ("error", "drop"):
        raise ValueError(f"invalid={invalid}: must be error or drop")
    for image in content["images"]:
        if image["width"] < 1 or image["height"] < 1:
            raise ValueError(
                f"{path}: image {image['id']}: is {image['width']} x {image['height']} pixels; "
                "correct it or drop the entry"
            )
    count = len(content["annotations"])
    _check_references(path, content)
    mending.crowd_flags(content["annotations"], findings)
    mending.boxes(path, content, findings)
    doubts.refuse_other_boxes(path, content)
    content["annotations"] = _sound(path, content, findings, drop=invalid == "drop")
    if count and not content["annotations"]:
        raise ValueError(f"{path}: {count} boxes, none of them usable; export it again")
    _complete(content["annotations"])
    return index(content)


def index(content: dict[str, Any]) -> COCO:
    """pycocotools' index over annotations in memory, without its chatter on stdout."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


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


def _check_entries(where: str, entries: list[Any], keys: dict[str, type], optional: dict[str, type]) -> None:
    """Every entry has its keys, of their types, and an id of its own."""
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where} number {place + 1}: is not a set of keys; export the file again")
        for key, kind in {"id": int, **keys, **optional}.items():
            value = entry.get(key)
            if value is None and key in optional:
                continue
            if value is None:
                raise ValueError(f"{where} {entry.get('id')}: has no {key}; add it or drop the entry")
            if not isinstance(value, kind) or isinstance(value, bool):
                wanted = {int: "a whole number", str: "a text", list: "a list"}[kind]
                raise ValueError(f"{where} {entry.get('id')}: {key}={value!r:.80}: must be {wanted}; correct it")
        if entry["id"] in seen:
            raise ValueError(f"{where} {entry['id']}: id={entry['id']} is given twice; number the entries apart")
        seen.add(entry["id"])


def _check_references(path: Path, content: dict[str, Any]) -> None:
    """Every annotation is of an image and a category of the file, and its other numbers are some."""
    known = {
        kind: {entry["id"] for entry in content[plural]}
        for kind, plural in (("image", "images"), ("category", "categories"))
    }
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        for kind, ids in known.items():
            if (value := annotation[f"{kind}_id"]) not in ids:
                raise ValueError(f"{where}: {kind}_id={value} is not among the file's; correct it or drop the entry")
        for key in ("area", "iscrowd"):
            if not isinstance(value := annotation.get(key), int | float | None):
                raise ValueError(f"{where}: {key}={value!r:.80}: must be a number; correct it or leave it out")


def _sound(path: Path, content: dict[str, Any], findings: Findings, drop: bool) -> list[Entry]:
    """The annotations with boxes that are some; ValueError for the first other one, unless they are dropped."""
    images = {image["id"]: image for image in content["images"]}
    sound = []
    for annotation in content["annotations"]:
        fault = next(_faults(annotation["bbox"], images[annotation["image_id"]]), None)
        described = f"annotation {annotation['id']}: bbox={annotation['bbox']} {fault}"
        if fault is None:
            sound.append(annotation)
        elif drop:
            findings.add("boxes left out", described)
        else:
            raise ValueError(f"{path}: {described}; correct it, or leave out all such with data.invalid=drop")
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
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        annotation["id"] += max(1 - first, 0)
