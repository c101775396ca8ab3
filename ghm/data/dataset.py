"""Detection data sets in COCO's terms: images with boxes, classes and crowds."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

CROWD = -1  # the label of crowd regions while images and boxes are augmented together
Augment = Callable[..., Any]


class Origin(NamedTuple):
    """Where a data set was read from, as `ghm data check` shows it."""

    layout: str
    annotations: str
    images: str


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with boxes: item i is `(image, target)`, item `(i, seed)` is augmented by that seed alone.

    image: float32 (3, H, W) in [0, 1]. target: `boxes` float32 (P, 4) as x1, y1, x2, y2 in pixels,
    `labels` int64 (P,) in [0, num_classes), `crowds` float32 (Q, 4), regions in which objects are not
    told apart, `image_id` int64 (), and with `masks` set `masks` uint8 (P, H, W).
    `coco` keeps everything, so that scoring treats crowds as COCO does.
    """

    masks = False
    has_boxes = True  # False: a list of images alone
    origin: Origin | None = None
    drawn = False  # True: made of its settings and its code alone, not read
    locate: Callable[[dict[str, Any]], Path] | None = None  # the file of an image entry, where it is one

    def __init__(
        self,
        categories: dict[int, str],
        open_coco: Callable[[], COCO],
        read: Callable[[dict[str, Any]], Tensor],
        augment: Augment | None = None,
    ) -> None:
        """`open_coco` is called on first use; `read` turns one of its image entries into uint8
        (3, H, W); `augment` takes image and target."""
        self.category_ids = sorted(categories)
        self.class_names = [categories[category] for category in self.category_ids]
        self.read, self.augment, self._open_coco = read, augment, open_coco

    @cached_property
    def coco(self) -> COCO:
        return self._open_coco()

    @cached_property
    def image_ids(self) -> list[int]:
        return sorted(self.coco.getImgIds())

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def pixels(self, image_id: int) -> Any:
        """An image as it is drawn on: uint8 (H, W, 3)."""
        return self.read(self.coco.imgs[image_id]).permute(1, 2, 0).numpy()

    @property
    def is_wide(self) -> list[bool]:
        """Of each image, whether it is wider than high: batches hold one kind, which saves padding."""
        return [self.coco.imgs[image]["width"] > self.coco.imgs[image]["height"] for image in self.image_ids]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        index, seed = item if isinstance(item, tuple) else (item, None)
        entry = self.coco.imgs[self.image_ids[index]]
        image, target = tv_tensors.Image(self.read(entry)), self._target(entry)
        if self.augment is not None and seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU as well
                image, target = self.augment(image, target)
            target = _usable(target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        objects = plain["labels"] != CROWD
        crowds = plain["boxes"][~objects]
        plain = {name: value[objects] for name, value in plain.items()}
        plain |= {"crowds": crowds, "image_id": torch.tensor(entry["id"])}
        return image.as_subclass(Tensor).float() / 255.0, plain

    def _target(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        """Objects and crowds alike: what happens to the image happens to both."""
        objects, size = self.coco.imgToAnns[entry["id"]], (entry["height"], entry["width"])
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [CROWD if a["iscrowd"] else self.category_ids.index(a["category_id"]) for a in objects]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if self.masks:
            masks = [torch.from_numpy(self._mask(a, size)) for a in objects]
            target["masks"] = tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8))
        return target

    def _mask(self, annotation: dict[str, Any], size: tuple[int, int]) -> Any:
        if not annotation.get("segmentation"):
            raise ValueError(f"annotation {annotation['id']}: has no segmentation; this model learns from masks")
        try:
            mask = self.coco.annToMask(annotation)
        except Exception as error:  # pycocotools raises what comes
            raise ValueError(f"annotation {annotation['id']}: segmentation is of no known form; correct it") from error
        if mask.shape != size:
            raise ValueError(f"annotation {annotation['id']}: segmentation is not of its image's size; correct it")
        return mask


class Data(NamedTuple):
    """What a run trains on and what it is scored on."""

    train: DetectionDataset
    val: DetectionDataset


def _usable(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without boxes that were cut to less than a pixel."""
    boxes = target["boxes"]
    sides = boxes[:, 2:] - boxes[:, :2]
    return {name: value[(sides >= 1).all(dim=1)] for name, value in target.items()}
