"""A small folder in COCO's format, written for a test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ghm.data.shapes import CLASSES, draw


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
