"""Detection data sets in COCO's terms, and the readers of COCO-format folders."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ghm.data import annotations
from ghm.data.images import check_headers, read_image
from ghm.data.noise import check_share, noisy

CROWD = -1  # the label of crowd regions while images and boxes are augmented together
Augment = Callable[..., Any]


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with boxes: item i is `(image, target)`, item `(i, seed)` is augmented by that seed alone.

    image: float32 (3, H, W) in [0, 1]. target: `boxes` float32 (P, 4) as x1, y1, x2, y2 in pixels,
    `labels` int64 (P,) in [0, num_classes), `crowds` float32 (Q, 4), regions in which objects are not
    told apart, `image_id` int64 (), and with `masks` set `masks` uint8 (P, H, W).
    `coco` keeps everything, so that scoring treats crowds as COCO does.
    """

    masks = False
    has_boxes = True  # False: a list of images alone

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


def coco_folder(
    root: str | None,
    train: str = "train",
    val: str = "val",
    augment: Augment | None = None,
    label_noise: float = 0.0,
    noise_seed: int = 0,
    invalid: Literal["error", "drop"] = "error",
) -> Data:
    """A folder in COCO's format: `images/` and `annotations/instances_{train,val}.json`.

    `train` and `val` name the two files. `augment`: transforms (torchvision's v2) for training images.
    `label_noise`: share of the training objects made wrong by `noise_seed`, see `noisy`. `invalid="drop"`:
    boxes that are none are left out, not refused. All that annotations and the headers of images tell is
    checked here, before hours are spent on training. ValueError names the file, the entry and the remedy.
    """
    folder = _folder(root)
    files = {split: (f"annotations/instances_{split}.json", "images") for split in (train, val)}
    return _data(folder, files[train], files[val], augment, label_noise, noise_seed, invalid)


def coco2017(
    root: str | None,
    train: str = "train2017",
    val: str = "val2017",
    augment: Augment | None = None,
    label_noise: float = 0.0,
    noise_seed: int = 0,
    invalid: Literal["error", "drop"] = "drop",
) -> Data:
    """COCO 2017 as it is unpacked: `train2017/`, `val2017/` and `annotations/`. Settings as for `coco_folder`.

    train2017 is the paper's trainval35k, val2017 its minival. `val="test-dev2017"` lists the images of the
    paper's final table, whose boxes only the COCO server knows.
    """
    folder = _folder(root)

    def files(split: str) -> tuple[str, str]:
        if split.startswith("test"):
            return f"annotations/image_info_{split}.json", "test2017"
        return f"annotations/instances_{split}.json", split

    return _data(folder, files(train), files(val), augment, label_noise, noise_seed, invalid)


def _folder(root: str | None) -> Path:
    if root is None:
        raise ValueError("data.root=null: names no folder; give data.root=PATH, or set GHM_DATA")
    return Path(root)


def _data(
    folder: Path,
    train_files: tuple[str, str],
    val_files: tuple[str, str],
    augment: Augment | None,
    label_noise: float,
    noise_seed: int,
    invalid: Literal["error", "drop"],
) -> Data:
    check_share(label_noise)
    train, val = (_open(folder, *files, invalid) for files in (train_files, val_files))
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        raise ValueError(f"data.root={folder}: train and val list different categories; list the same in both")
    train.coco = noisy(train.coco, label_noise, noise_seed)
    train.augment = augment
    return Data(train, val)


def _open(folder: Path, file: str, images: str, invalid: Literal["error", "drop"]) -> DetectionDataset:
    path = folder / file
    if not path.is_file():
        raise ValueError(
            f"data.root={folder}: no {file} there; point data.root at a folder with images/ and "
            "annotations/instances_train.json, instances_val.json (data=coco2017: train2017/, val2017/)"
        )
    state = path.stat()
    coco = _checked(path, folder / images, invalid, state.st_mtime_ns, state.st_size)
    names = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    dataset = DetectionDataset(
        names, lambda: coco, lambda entry: read_image(folder / images / entry["file_name"], entry)
    )
    dataset.has_boxes = bool(coco.anns)
    return dataset


@lru_cache(maxsize=4)
def _checked(path: Path, images: Path, invalid: Literal["error", "drop"], *_changed: int) -> COCO:
    """Read and checked once in a process, however many trials run in it, until the file changes."""
    coco = annotations.read(path, invalid, boxes=not path.name.startswith("image_info"))
    annotations.check_files(path, coco, images)
    check_headers(images, coco.dataset["images"])
    return coco


def _usable(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without boxes that were cut to less than a pixel."""
    boxes = target["boxes"]
    sides = boxes[:, 2:] - boxes[:, :2]
    return {name: value[(sides >= 1).all(dim=1)] for name, value in target.items()}
