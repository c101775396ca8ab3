"""Where a folder keeps its annotation files and its images: the layouts of annotation tools, decided here alone."""

import os.path
from pathlib import Path
from typing import NamedTuple

# The annotation file of a split, and the tool that writes it so. The first that exists is taken.
SPLITS = {
    "annotations/instances_{}.json": "COCO",
    "annotations/image_info_{}.json": "COCO, images alone",
    "{}/_annotations.coco.json": "Roboflow",
    "{}/labels.json": "FiftyOne",
    "annotations/{}.json": "a file for each split",
    "{}.json": "a file for each split",
}
# Files of tools that know no splits.
ONE = {
    "annotations/instances_default.json": "CVAT",
    "result.json": "Label Studio",
    "labels.json": "FiftyOne",
    "_annotations.coco.json": "Roboflow",
}
OTHER_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
# Folders of images; {} is the split. An annotation file's own folder comes before them.
IMAGES = ("images/{}", "{}/images", "{}/data", "{}", "images", "images/default", "data", ".")
SAMPLE = 50  # listed files that are looked for in a folder to see whether it is theirs


class Found(NamedTuple):
    """An annotation file, the name of its split, and whose layout it is."""

    path: Path
    split: str
    layout: str


def one_file(root: Path, train: str, val: str) -> Found:
    """The annotation file that is to be divided into train and val. ValueError when it is not plain which."""
    found = _split(root, train)
    if found is None:
        found = _only(root)
    elif not _by_hand(train) and (other := _split(root, val)) is not None:
        raise ValueError(
            f"data.root={root}: data.val_share divides one file, and there is {_short(root, other.path)} beside "
            f"{_short(root, found.path)}; leave data.val_share out, or name the file with data.train=FILE"
        )
    if found is None:
        raise ValueError(_nothing(root, train))
    return found


def two_files(root: Path, train: str, val: str) -> tuple[Found, Found]:
    """The annotation files of train and val. ValueError says what is there instead, and what to type."""
    found = {name: _split(root, name) for name in (train, val)}
    for name, file in found.items():
        if file is None:
            raise ValueError(_nothing(root, name))
    one, other = found[train], found[val]
    assert one is not None
    assert other is not None
    return one, other


def image_folder(root: Path, found: Found, names: list[str], given: str | None) -> Path:
    """The folder that holds the listed files: the one given, or the one of `IMAGES` where most of them lie."""
    if given is not None:
        candidates = [root / given / found.split, root / given]
    else:
        split = found.split.replace("-dev", "")  # COCO's test-dev2017 lies among test2017
        candidates = [found.path.parent, *(root / folder.format(split) for folder in IMAGES)]
    sample = names[:: max(len(names) // SAMPLE, 1)]
    for spelled in (lambda name: name, _last):  # as listed, or else by the name alone
        counts = [sum(os.path.isfile(folder / spelled(name)) for name in sample) for folder in candidates]
        if max(counts):
            return candidates[counts.index(max(counts))]
    there = [folder for folder in candidates if folder.is_dir() and folder not in (root, found.path.parent)]
    return there[0] if there else root / "images"


def _split(root: Path, name: str) -> Found | None:
    if _by_hand(name):
        path = root / name
        if not path.is_file():
            raise ValueError(f"data.root={root}: no {name} there; give the path of an annotation file below it")
        return Found(path, path.stem.removeprefix("instances_"), "named by hand")
    for pattern, tool in SPLITS.items():
        for spelled in OTHER_NAMES.get(name, (name,)):
            if (path := root / pattern.format(spelled)).is_file():
                return Found(path, spelled, tool)
    return None


def _by_hand(name: str) -> bool:
    return name.endswith(".json")


def _only(root: Path) -> Found | None:
    """The folder's one annotation file, where there is just one."""
    for pattern, tool in ONE.items():
        if (path := root / pattern).is_file():
            return Found(path, "default", tool)
    files = _json_files(root)
    return Found(files[0], files[0].stem, "one file") if len(files) == 1 else None


def _json_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])


def _nothing(root: Path, split: str) -> str:
    """What to say where the file of a split is not found."""
    missing = f"data.root={root}: no annotations/instances_{split}.json there, nor what other tools write"
    if (only := _only(root)) is not None:
        return (
            f"{missing}, but {_short(root, only.path)}; divide it with data.val_share=0.2, "
            "or name two files with data.train=FILE data.val=FILE"
        )
    if files := _json_files(root):
        named = ", ".join(_short(root, file) for file in files[:5])
        return (
            f"{missing}, but {named}; name two files with data.train=FILE data.val=FILE, or one with data.val_share=0.2"
        )
    if (train := _split(root, "train")) is not None and split != "train":
        return (
            f"{missing}; name it with data.{split}=FILE, or divide {_short(root, train.path)} with data.val_share=0.2"
        )
    return (
        f"{missing}; point data.root at a folder with images/ and annotations/instances_train.json, "
        "instances_val.json (data=coco2017: train2017/, val2017/), or see docs/data.md"
    )


def _short(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _last(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]
