"""Detection data sets in COCO's terms, and the reader of COCO-format folders."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from ghm.data import annotations

SPLITS = ("train", "val")


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with boxes: item i is `(image, target)`.

    image: float32 (3, H, W) in [0, 1]. target: `boxes` float32 (P, 4) as x1, y1, x2, y2 in pixels,
    `labels` int64 (P,) in [0, num_classes), `image_id` int64 (). Crowd annotations are no targets;
    `coco` keeps them, so that scoring treats them as COCO does.
    """

    def __init__(
        self,
        categories: dict[int, str],
        open_coco: Callable[[], COCO],
        read: Callable[[dict[str, Any]], Tensor],
        augment: Callable[..., Any] | None = None,
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

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        entry = self.coco.imgs[self.image_ids[index]]
        image = self.read(entry)
        objects = [a for a in self.coco.imgToAnns[entry["id"]] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.tensor([self.category_ids.index(a["category_id"]) for a in objects], dtype=torch.int64),
        }
        if self.augment is not None:
            image, target = self.augment(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        plain["image_id"] = torch.tensor(entry["id"])
        return image.as_subclass(Tensor).float() / 255.0, plain


class Data(NamedTuple):
    """What a run trains on and what it is scored on."""

    train: DetectionDataset
    val: DetectionDataset


def flip() -> Callable[..., Any]:
    """The paper's only augmentation: a horizontal flip of every other image."""
    return v2.RandomHorizontalFlip(0.5)


def coco_folder(root: str | None) -> Data:
    """A folder in COCO's format: `images/` and `annotations/instances_{train,val}.json`.

    That every listed image exists, and every box is one, is checked here, before hours are spent on
    training; what is in the images shows when they are read.
    ValueError names the file, the entry and the remedy.
    """
    if root is None:
        raise ValueError("data.root=null: names no folder; give data.root=PATH, or set GHM_DATA")
    folder = Path(root)
    train, val = (_open(folder, split) for split in SPLITS)
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        raise ValueError(f"data.root={root}: train and val list different categories; list the same in both")
    train.augment = flip()
    return Data(train, val)


def _open(folder: Path, split: str) -> DetectionDataset:
    coco = annotations.read(folder, split)
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    return DetectionDataset(names, lambda: coco, _Reader(folder / "images"))


class _Reader:
    """Reads an image entry's file below `folder` as uint8 RGB (3, H, W)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, entry: dict[str, Any]) -> Tensor:
        path = self.folder / entry["file_name"]
        try:
            with Image.open(path) as image:
                return vision.pil_to_tensor(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{path}: not a readable image ({error}); replace it or drop its entry") from error
