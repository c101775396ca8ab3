"""Readers of folders in COCO's format: found, checked as a whole, and read once in a process."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pycocotools.coco import COCO

from ghm.data import annotations, division, doubts, files, layout
from ghm.data.dataset import Augment, Data, DetectionDataset, Origin
from ghm.data.findings import Findings
from ghm.data.images import check_headers, read_image
from ghm.data.noise import check_share, noisy

Invalid = Literal["error", "drop"]
Empty = Literal["keep", "drop"]


def coco_folder(
    root: str | None,
    train: str = "train",
    val: str = "val",
    images: str | None = None,
    val_share: float | None = None,
    split_seed: int = 0,
    allow_overlap: bool = False,
    augment: Augment | None = None,
    label_noise: float = 0.0,
    noise_seed: int = 0,
    invalid: Invalid = "error",
    empty: Empty = "keep",
) -> Data:
    """A folder with annotations in COCO's format, in any of the layouts that `layout` knows.

    `train` and `val`: names of splits, or paths of annotation files below `root`. `images`: the folder of
    images below `root`, where it is not found by itself. `val_share`: one file, of which so large a share
    becomes val, drawn by `split_seed`. `allow_overlap`: images may be in train and val. `augment`: transforms
    (torchvision's v2) for training images. `label_noise`: share of the training objects made wrong by
    `noise_seed`, see `noisy`. `invalid="drop"`: boxes that are none are left out, not refused. `empty="drop"`:
    training images without a box are left out, as in mmdetection.

    All that annotations and the headers of images tell is checked here, before hours are spent on training;
    what is odd is said in a warning. ValueError names the file, the entry and the remedy.
    """
    if root is None:
        raise ValueError("data.root=null: names no folder; give data.root=PATH, or set GHM_DATA")
    check_share(label_noise)
    if empty not in get_args(Empty):
        raise ValueError(f"empty={empty}: must be keep or drop")
    folder = Path(root)
    found = layout.two_files(folder, train, val) if val_share is None else (layout.one_file(folder, train, val),)
    states = tuple((file.path.stat().st_mtime_ns, file.path.stat().st_size) for file in found)
    one, other = _opened(folder, found, images, val_share, split_seed, allow_overlap, invalid, states)
    data = Data(_dataset(folder, one), _dataset(folder, other))
    data.train.coco = noisy(data.train.coco, label_noise, noise_seed)
    if empty == "drop":
        data.train.coco = _without_empty(data.train.coco)
    data.train.augment = augment
    return data


def _without_empty(coco: COCO) -> COCO:
    """The images that hold an object or a crowd."""
    held = {annotation["image_id"] for annotation in coco.dataset["annotations"]}
    images = [image for image in coco.dataset["images"] if image["id"] in held]
    return annotations.index(coco.dataset | {"images": images})


class _Source(NamedTuple):
    """One split as it was read."""

    found: layout.Found
    folder: Path
    coco: COCO


@lru_cache(maxsize=4)
def _opened(
    root: Path,
    found: tuple[layout.Found, ...],
    images: str | None,
    val_share: float | None,
    split_seed: int,
    allow_overlap: bool,
    invalid: Invalid,
    _states: tuple[tuple[int, int], ...],
) -> tuple[_Source, _Source]:
    """Train and val, read and checked once in a process, however many trials run in it, until a file changes."""
    sources = [_read(root, file, images, invalid) for file in found]
    if val_share is not None:
        (source,) = sources
        sources = [source._replace(coco=part) for part in division.divide(source.coco, val_share, split_seed)]
    train, val = (
        source._replace(coco=coco) for source, coco in zip(sources, _one_numbering(root, *sources), strict=True)
    )
    doubts.refuse_crowds_alone(train.found.path, train.coco)
    if not allow_overlap:
        if val_share is None and train.found.path.samefile(val.found.path):
            raise ValueError(
                f"data.root={root}: {train.found.path.name} is both train and val; divide it with "
                "data.val_share=0.2, or allow it with data.allow_overlap=true"
            )
        doubts.refuse_overlap(root, *(_image_files(source) for source in (train, val)))
    findings = Findings(root)
    doubts.compare_classes(train.coco, val.coco, findings)
    findings.say()
    return train, val


def _read(root: Path, found: layout.Found, images: str | None, invalid: Invalid) -> _Source:
    path, findings = found.path, Findings(found.path)
    content = annotations.read(path, findings, boxes=not path.name.startswith("image_info"))
    entries = content["images"]
    folder = layout.image_folder(root, found, [entry["file_name"] for entry in entries], images)
    files.find(path, entries, folder, findings)
    files.complete_sizes(entries, folder, findings)
    coco = annotations.checked(path, content, findings, invalid)
    check_headers(folder, entries)
    doubts.look_into(coco, findings)
    findings.say()
    return _Source(found, folder, coco)


def _image_files(source: _Source) -> list[Path]:
    return [source.folder / entry["file_name"] for entry in source.coco.dataset["images"]]


def _one_numbering(root: Path, train: _Source, val: _Source) -> tuple[COCO, COCO]:
    """Both splits with the categories of either. ValueError where an id has two names."""
    names: dict[int, str] = {}
    for source in (train, val):
        for number, category in source.coco.cats.items():
            if names.setdefault(number, category["name"]) != category["name"]:
                raise ValueError(
                    f"data.root={root}: category {number} is {names[number]!r} in {train.found.path.name} and "
                    f"{category['name']!r} in {val.found.path.name}; number the categories alike in both"
                )
    if train.coco.cats.keys() == val.coco.cats.keys():
        return train.coco, val.coco
    categories = list({**val.coco.cats, **train.coco.cats}.values())
    one, other = (annotations.index(source.coco.dataset | {"categories": categories}) for source in (train, val))
    return one, other


def _dataset(root: Path, source: _Source) -> DetectionDataset:
    names = {number: category["name"] for number, category in source.coco.cats.items()}

    def locate(entry: dict[str, Any]) -> Path:
        return source.folder / entry["file_name"]

    dataset = DetectionDataset(names, lambda: source.coco, lambda entry: read_image(locate(entry), entry))
    dataset.locate = locate
    dataset.has_boxes = bool(source.coco.anns)
    shown = (
        str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        for path in (source.found.path, source.folder)
    )
    dataset.origin = Origin(source.found.layout, *shown)
    return dataset
