"""Drawn images: shapes on textured grounds, made in memory from a seed. Same seed, same bytes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from torch import Tensor

from ghm.data.annotations import index
from ghm.data.dataset import Augment, Data, DetectionDataset
from ghm.data.noise import check_share, noisy

CLASSES = ("disk", "square", "triangle", "ring")
Array = NDArray[np.float64]


def shapes(
    train_images: int = 512,
    val_images: int = 128,
    image_size: int = 96,
    max_objects: int = 6,
    seed: int = 0,
    augment: Augment | None = None,
    label_noise: float = 0.0,
    noise_seed: int = 0,
) -> Data:
    """`train_images` and `val_images` square images of `image_size` pixels with 1 to `max_objects` shapes.

    Shapes have four classes, any angle, sides of an eighth to two fifths of the image, overlap in
    part, and differ little from the ground at times; unlabelled strokes distract. `seed` alone
    decides every byte; train and val never share an image. `augment`, `label_noise`, `noise_seed`: as for
    `coco_folder`.
    """
    for name, value in (("train_images", train_images), ("val_images", val_images), ("max_objects", max_objects)):
        if value < 1:
            raise ValueError(f"data.{name}={value}: must be at least 1")
    if image_size < 32:
        raise ValueError(f"data.image_size={image_size}: must be at least 32 pixels")
    check_share(label_noise)
    train, val = (
        Drawn(count, image_size, max_objects, (seed, part)) for part, count in ((0, train_images), (1, val_images))
    )
    return Data(
        train.dataset(lambda: noisy(train.open_coco(), label_noise, noise_seed), augment), val.dataset(val.open_coco)
    )


class Drawn:
    """One split, drawn as a whole on first use and kept in memory."""

    def __init__(self, count: int, size: int, max_objects: int, seed: tuple[int, int]) -> None:
        self.count, self.size, self.max_objects, self.seed = count, size, max_objects, seed
        self.images: dict[int, Tensor] = {}

    def dataset(self, open_coco: Callable[[], COCO], augment: Augment | None = None) -> DetectionDataset:
        made = DetectionDataset(dict(enumerate(CLASSES, 1)), open_coco, self.read, augment)
        made.drawn = True
        return made

    def read(self, entry: dict[str, Any]) -> Tensor:
        return self.images[entry["id"]]

    def open_coco(self) -> COCO:
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, self.count + 1):
            rng = np.random.default_rng([*self.seed, number])
            pixels, objects = draw(rng, self.size, self.max_objects)
            self.images[number] = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
            file_name = f"{number:06d}.png"
            entries.append({"id": number, "width": self.size, "height": self.size, "file_name": file_name})
            for label, (x1, y1, x2, y2) in objects:
                box = [x1, y1, x2 - x1, y2 - y1]
                annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": box}
                annotations.append(annotation | {"area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": category, "name": name} for category, name in enumerate(CLASSES, 1)]
        return index({"images": entries, "annotations": annotations, "categories": categories})


def draw(rng: np.random.Generator, size: int, max_objects: int) -> tuple[NDArray[np.uint8], list[Any]]:
    """One image, uint8 (size, size, 3), and its objects as (label, (x1, y1, x2, y2)) in pixels."""
    image = _texture(rng, size, contrast=0.35)
    for _ in range(rng.integers(2, 6)):
        _paint(image, _stroke(rng, size), _texture(rng, size, contrast=0.1))
    objects: list[tuple[int, tuple[float, float, float, float]]] = []
    wanted = rng.integers(1, max_objects + 1)
    for _ in range(4 * max_objects):  # tries; crowded images may end with fewer than wanted
        radius = rng.uniform(size / 16, size / 5)
        center = rng.uniform(radius, size - radius, 2)
        box = (center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius)
        if len(objects) == wanted or any(_iou(box, other) > 0.2 for _, other in objects):
            continue
        label = int(rng.integers(len(CLASSES)))
        cover = _shape(CLASSES[label], center, radius, rng.uniform(0, 2 * np.pi), size)
        _paint(image, cover, _texture(rng, size, contrast=0.2))
        objects.append((label, _bounds(cover)))
    noisy = image + rng.normal(0, 0.02, image.shape)
    return (noisy.clip(0, 1) * 255).round().astype(np.uint8), objects


def _shape(name: str, center: Array, radius: float, angle: float, size: int) -> Array:
    """Coverage (size, size) in [0, 1] of a shape that touches the circle of `radius`; antialiased."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    x, y = x - center[0], y - center[1]
    distance = np.hypot(x, y)
    if name == "disk":
        inside = radius - distance
    elif name == "ring":
        inside = np.minimum(radius - distance, distance - 0.55 * radius)
    else:
        corners = {"square": 4, "triangle": 3}[name]
        normals = angle + 2 * np.pi * np.arange(corners) / corners
        apothem = radius * np.cos(np.pi / corners)
        inside = np.min([apothem - x * np.cos(a) - y * np.sin(a) for a in normals], axis=0)
    return (inside + 0.5).clip(0, 1)


def _stroke(rng: np.random.Generator, size: int) -> Array:
    """Coverage of a thin straight line, half the image long at most."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
    along = (x - start[0]) * np.cos(angle) + (y - start[1]) * np.sin(angle)
    across = (y - start[1]) * np.cos(angle) - (x - start[0]) * np.sin(angle)
    on_line = (along > 0) & (along < rng.uniform(0.1, 0.5) * size)
    return (rng.uniform(0.5, 1.5) - np.abs(across) + 0.5).clip(0, 1) * on_line


def _texture(rng: np.random.Generator, size: int, contrast: float) -> Array:
    """A random colour, clouded by noise at three scales; (size, size, 3)."""
    color = rng.uniform(0.1, 0.9, 3)
    cloud = np.zeros((size, size, 1))
    for cells in (3, 8, 24):
        enlarge = _bilinear(cells, size)
        cloud[..., 0] += enlarge @ rng.normal(0, 1 / 3, (cells, cells)) @ enlarge.T
    return color + contrast * cloud * rng.uniform(0.5, 1.0, 3)


@cache
def _bilinear(cells: int, size: int) -> Array:
    """The (size, cells) matrix that interpolates `cells` values linearly to `size` values."""
    positions = np.linspace(0, cells - 1, size)
    return np.array([np.interp(positions, np.arange(cells), row) for row in np.eye(cells)]).T


def _paint(image: Array, cover: Array, paint: Array) -> None:
    image += cover[..., None] * (paint - image)


def _bounds(cover: Array) -> tuple[float, float, float, float]:
    """Tight box (x1, y1, x2, y2) around the pixels that are at least half covered."""
    rows, columns = np.nonzero((cover >= 0.5).any(1))[0], np.nonzero((cover >= 0.5).any(0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
