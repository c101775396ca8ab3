"""`ghm data check`: every annotation and every pixel of a folder, before hours are spent on it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from ghm.data import Data, DetectionDataset
from ghm.data.dataset import Origin
from ghm.settings.parts import build
from ghm.settings.paths import absolute
from ghm.verbs import composed, table

SHOWN = 12  # images on the contact sheet


class Summary(NamedTuple):
    """Counts of one split; `sides` are percentiles 5, 50 and 95 of the boxes' sides, sqrt(area), in pixels."""

    origin: Origin | None
    images: int
    empty: int
    boxes: int
    crowds: int
    per_class: list[tuple[str, int]]  # two classes may have one name
    sizes: dict[str, int]  # small, medium, large, as COCO counts them
    sides: tuple[float, float, float]


def main() -> None:
    outcome = composed.run(run, "check")
    if outcome is None:  # --cfg, --info
        return
    splits, sheet = outcome
    rows = [
        [name.replace("_", " "), *(str(getattr(s, name)) for s in splits.values())]
        for name in ("images", "empty", "boxes", "crowds")
    ]
    for kind in ("small", "medium", "large"):
        rows.append([f"{kind} boxes", *(str(s.sizes[kind]) for s in splits.values())])
    rows.append(["sides, 5 / 50 / 95 %", *(" / ".join(f"{side:.0f}" for side in s.sides) for s in splits.values())])
    for classes in zip(*(s.per_class for s in splits.values()), strict=True):
        rows.append([f"  {classes[0][0]}", *(str(count) for _, count in classes)])
    table.show("Every image and annotation is sound", ["", *splits], rows)
    for name, split in splits.items():
        if (origin := split.origin) is not None:
            print(f"{name}: {origin.annotations} with the images in {origin.images}/ ({origin.layout})")
    print(f"Look at {sheet}")


def run(cfg: DictConfig) -> tuple[dict[str, Summary], Path]:
    """Check the folder `cfg.data`, whole: annotations, headers, and each image to its last byte.

    Returns a summary of train and val, and the path of a sheet of annotated images. ValueError names the
    damaged images, up to ten of them.
    """
    cfg = absolute(cfg)
    data: Data = build(cfg, "data")
    splits = {"train": data.train, "val": data.val}
    faults = [fault for dataset in splits.values() for fault in _decode(dataset)]
    if faults:
        more = f" (and {len(faults) - 10} more)" if len(faults) > 10 else ""
        raise ValueError("; ".join(faults[:10]) + more)
    sheet = _sheet(data.train, Path(cfg.dir) / "contact_sheet.png")
    return {name: summarize(dataset) for name, dataset in splits.items()}, sheet


def summarize(dataset: DetectionDataset) -> Summary:
    coco = dataset.coco
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    objects = [a for a in coco.anns.values() if not a["iscrowd"]]
    counts = Counter(a["category_id"] for a in objects)
    areas = np.array([a["area"] for a in objects])
    sides = np.percentile(np.sqrt([a["bbox"][2] * a["bbox"][3] for a in objects] or [0.0]), (5, 50, 95))
    return Summary(
        origin=dataset.origin,
        images=len(dataset),
        empty=sum(not coco.imgToAnns[image] for image in dataset.image_ids),
        boxes=len(objects),
        crowds=len(crowds),
        per_class=[(name, counts[i]) for i, name in zip(dataset.category_ids, dataset.class_names, strict=True)],
        sizes={
            "small": int((areas < 32**2).sum()),
            "medium": int(((areas >= 32**2) & (areas < 96**2)).sum()),
            "large": int((areas >= 96**2).sum()),
        },
        sides=tuple(sides.tolist()),
    )


def _decode(dataset: DetectionDataset) -> list[str]:
    """What is wrong with the images that cannot be read."""

    def fault(image_id: int) -> str | None:
        try:
            dataset.pixels(image_id)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(4) as threads:
        return [found for found in threads.map(fault, dataset.image_ids) if found]


def _sheet(dataset: DetectionDataset, path: Path) -> Path:
    """Images spread evenly over the data, with their true boxes."""
    from ghm.reports.detections import contact_sheet  # plotting takes a second to import

    path.parent.mkdir(parents=True, exist_ok=True)
    places = np.linspace(0, len(dataset) - 1, min(SHOWN, len(dataset))).round().astype(int)
    ids = [dataset.image_ids[place] for place in places]
    annotations: list[list[dict[str, Any]]] = [dataset.coco.imgToAnns[image_id] for image_id in ids]
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    return contact_sheet(
        [dataset.pixels(image_id) for image_id in ids],
        [[tuple(a["bbox"]) for a in each] for each in annotations],
        [[names[a["category_id"]] for a in each] for each in annotations],
        [dataset.coco.imgs[image_id]["file_name"] for image_id in ids],
        path,
    )
