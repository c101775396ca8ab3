"""Small folders in COCO's format, written for a test."""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ghm.data.shapes import CLASSES, draw

# Ids with gaps, out of order; image 7 has a crowd beside two boxes, image 3 nothing.
CONTENT = {
    "images": [
        {"id": 7, "file_name": "seven.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "deep/three.jpg", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 10, 20], "area": 200, "iscrowd": 0},
        {
            "id": 12,
            "image_id": 7,
            "category_id": 4,
            "bbox": [0, 0, 40, 30],
            "area": 1200,
            "iscrowd": 1,
            "segmentation": {"size": [30, 40], "counts": [0, 1200]},
        },
        {"id": 14, "image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8], "area": 64, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "kite"}, {"id": 4, "name": "cat"}, {"id": 17, "name": "dog"}],
}
LACKING = object()


def changed(kind, place, **values):
    """The good content with an entry changed; a value of LACKING removes the key."""
    content = copy.deepcopy(CONTENT)
    entry = content[kind][place]
    entry.update(values)
    for name in [name for name, value in values.items() if value is LACKING]:
        del entry[name]
    return content


def write_content(root: Path, train=CONTENT, val=CONTENT) -> str:
    """A folder with the good content, or what is given in its place; returns its path."""
    (root / "images" / "deep").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (255, 0, 51)).save(root / "images" / "seven.png")
    Image.new("L", (20, 50), 128).save(root / "images" / "deep" / "three.jpg")
    for split, content in (("train", train), ("val", val)):
        save(root / "annotations" / f"instances_{split}.json", content)
    return str(root)


def save(path: Path, content) -> Path:
    """Bytes as they are, all else as JSON."""
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def write_folder(root: Path, images: int = 4, size: int = 64) -> None:
    """Drawn images as files, with annotations for both splits; category ids have gaps, as COCO's do."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for place, split in enumerate(("train", "val")):
        entries, annotations = [], []
        for number in range(1 + place * images, 1 + (place + 1) * images):
            pixels, objects = draw(np.random.default_rng(number), size, max_objects=3)
            name = f"{number:04d}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            entries.append({"id": number, "file_name": name, "width": size, "height": size})
            for label, (x1, y1, x2, y2) in objects:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                own = {"id": len(annotations) + 1, "image_id": number, "category_id": 10 * (label + 1)}
                annotations.append(own | box)
        categories = [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": entries, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
