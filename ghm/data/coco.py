"""Detection data sets in COCO's terms, and the reader of COCO-format folders."""

import contextlib
import io
import json
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
        annotations = [a for a in self.coco.imgToAnns[entry["id"]] if not a.get("iscrowd", 0)]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.tensor([self.category_ids.index(a["category_id"]) for a in annotations], dtype=torch.int64),
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

    Every listed image and every box is checked here, before hours are spent on training.
    ValueError names the file, the entry and the remedy.
    """
    if root is None:
        raise ValueError("data.root=null: names no folder; give data.root=PATH, or set GHM_DATA")
    folder = Path(root)
    train, val = (_open(folder, split) for split in SPLITS)
    if train.category_ids != val.category_ids:
        raise ValueError(f"data.root={root}: train and val list different categories; list the same in both")
    train.augment = flip()
    return Data(train, val)


def _open(folder: Path, split: str) -> DetectionDataset:
    coco = _index(folder, split)
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


def _index(folder: Path, split: str) -> COCO:
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise ValueError(
            f"data.root={folder}: no {path.relative_to(folder)} there; point data.root at a folder with "
            "images/ and annotations/instances_train.json, instances_val.json"
        )
    try:
        content = json.loads(path.read_text())
        images, annotations = content["images"], content["annotations"]
        categories = {c["id"] for c in content["categories"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO instances file ({error!r}); export it again") from error
    if not images or not annotations:
        raise ValueError(f"{path}: {len(images)} images and {len(annotations)} boxes; needs at least one of each")
    _check_images(folder / "images", path, images)
    _check_annotations(path, annotations, {entry["id"] for entry in images}, categories)
    return index(content)


def _check_images(folder: Path, path: Path, images: list[dict[str, Any]]) -> None:
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    missing = [entry for entry in images if entry["file_name"] not in present]
    if missing:
        first = missing[0]
        raise ValueError(
            f"{path}: image {first['id']} lists file_name={first['file_name']}, which is not in {folder} "
            f"({len(missing)} of {len(images)} missing); add the files or drop their entries"
        )


def _check_annotations(path: Path, annotations: list[dict[str, Any]], images: set[int], categories: set[int]) -> None:
    for annotation in annotations:
        where = f"{path}: annotation {annotation.get('id')}"
        if annotation["image_id"] not in images:
            raise ValueError(f"{where}: image_id={annotation['image_id']} is not among the images; drop it")
        if annotation["category_id"] not in categories:
            raise ValueError(f"{where}: category_id={annotation['category_id']} is not among the categories; drop it")
        x, y, width, height = annotation["bbox"]
        # Written so that NaN fails too.
        if not (width > 0 and height > 0 and abs(x) < float("inf") and abs(y) < float("inf")):
            raise ValueError(f"{where}: bbox={annotation['bbox']} has no area; correct it or drop it")


def index(content: dict[str, Any]) -> COCO:
    """pycocotools' index over annotations in memory, without its chatter on stdout."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
