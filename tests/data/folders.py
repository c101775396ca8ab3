"""Folders as people bring them: a few drawn images, and annotations in the shape that a test gives them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 72)
CATEGORIES = [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]


def drawn(split: str, count: int = 8, seed: int = 0) -> tuple[dict, dict[str, Image.Image]]:
    """An instances file with two boxes on each image, one of each class, and the images by name."""
    rng = np.random.default_rng([seed, len(split), count])
    images, annotations, files = [], [], {}
    for number in range(1, count + 1):
        pixels = np.full((SIZE[1], SIZE[0], 3), rng.integers(60, 110, 3), dtype=np.uint8)
        name = f"{split}_{number:03d}.png"
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category in (1, 2):
            width, height = (int(side) for side in rng.integers(16, 30, 2))
            x, y = int(rng.integers(0, SIZE[0] - width)), int(rng.integers(0, SIZE[1] - height))
            pixels[y : y + height, x : x + width] = rng.integers(0, 255, 3)
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append(own | box)
        files[name] = Image.fromarray(pixels)
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, files


def write(root: Path, file: str, content: dict, images: dict[str, Image.Image], folder: str) -> None:
    """One annotation file below `root`, and its images in `folder` below it."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    for name, image in images.items():
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / folder / name)


def both(root: Path, change=lambda content: None, file="annotations/instances_{}.json", folder="images") -> str:
    """Train and val of eight and four images, their content changed in place by `change`; the folder's path."""
    for split, count in (("train", 8), ("val", 4)):
        content, images = drawn(split, count)
        content = json.loads(json.dumps(content))
        change(content)
        write(root, file.format(split), content, images, folder.format(split))
    return str(root)
