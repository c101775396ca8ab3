"""What annotation files write in other ways than COCO does, where it is plain what is meant."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ghm.data.findings import Findings

Entry = dict[str, Any]


def whole_numbers(kind: str, entries: list[Any], keys: tuple[str, ...], findings: Findings) -> None:
    """Read "7" and 7.0 as 7; what is no whole number stays as it is."""
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        for key in keys:
            value = entry.get(key)
            if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}(\.0*)?\s*", value, re.ASCII):
                whole = int(value.strip().split(".")[0])
            elif isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
                whole = int(value)
            else:
                continue
            findings.add("whole numbers written as text or as 1.0", f"{kind} {entry.get('id')}: {key}={value!r}")
            entry[key] = whole


def crowd_flags(annotations: list[Entry], findings: Findings) -> None:
    """Objects of which nothing else is said are no crowds."""
    for annotation in annotations:
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
            findings.add("no iscrowd, read as 0", f"annotation {annotation['id']}")


def boxes(path: Path, content: dict[str, Any], findings: Findings) -> None:
    """Give annotations without `bbox` the box around their segmentation. ValueError for those that have neither."""
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation.get("bbox") is not None:
            continue
        where = f"annotation {annotation['id']}"
        if not annotation.get("segmentation"):
            raise ValueError(f"{path}: {where}: has no bbox; add it or drop the entry")
        try:
            annotation["bbox"] = _around(annotation["segmentation"], images[annotation["image_id"]])
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise ValueError(
                f"{path}: {where}: has no bbox, and a segmentation of no known form; add the box or drop the entry"
            ) from error
        findings.add("no bbox, read from the segmentation", where)


def _around(segmentation: Any, image: Entry) -> list[float]:
    """x, y, width, height of polygons, of a list of run lengths, or of COCO's compressed ones."""
    if isinstance(segmentation, list):
        corners = np.concatenate([np.array(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation])
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]
    size, counts = list(segmentation["size"]), segmentation["counts"]
    if size != [image["height"], image["width"]]:
        raise ValueError("is of another size than its image")
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1] or min(counts) < 0:
            raise ValueError("its run lengths are not those of the image")
        segmentation = rle.frPyObjects(segmentation, *size)
    box: list[float] = rle.toBbox(segmentation).tolist()
    return box
