"""What tells one data set from another: its images and annotations, and for a while the files they lie in."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ghm.data import DetectionDataset
from ghm.settings.parts import data_of

Node = dict[str, Any]  # a config's `data`, as plain values
KINDS = ("images", "annotations", "categories")  # of what annotations list


def division(node: Node) -> dict[str, list[str]]:
    """The images of train and val, by file name."""
    return {name: [image["file_name"] for image in split.coco.dataset["images"]] for name, split in _splits(node)}


def described(node: Node, choice: str) -> list[dict[str, str]]:
    """Of train and val: name, digest (of images and boxes), where they are from, and how many.

    They bear the name of their folder; what has none, that of the `choice` of a file in conf/data.
    """
    source = OmegaConf.to_yaml(OmegaConf.create(node))
    return [
        {
            "name": f"{_name(node, choice)} {context}",
            "digest": _digest(split),
            "context": context,
            "source": source,
            "profile": json.dumps({kind: len(split.coco.dataset[kind]) for kind in KINDS}),
        }
        for context, split in _splits(node)
    ]


def digests(node: Node) -> dict[str, str]:
    """Of train and val, by name, as far as they are read: what is drawn depends on its node and on code alone."""
    return {f"{_name(node, 'data')} {context}": _digest(split) for context, split in _splits(node) if not split.drawn}


def fingerprint(node: Node) -> str:
    """Of all that a run reads: annotations, and of each image file its size and time.

    The bytes of the images are not read: COCO's would take minutes.
    """
    return _fingerprint(json.dumps(node))


@cache
def _fingerprint(node: str) -> str:
    told = []
    for _, split in _splits(json.loads(node)):
        if not split.drawn:
            told.append(_digest(split))
        if split.locate is not None:
            states = [os.stat(split.locate(entry)) for entry in split.coco.dataset["images"]]
            told += [f"{state.st_size} {state.st_mtime_ns}" for state in states]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _splits(node: Node) -> list[tuple[str, DetectionDataset]]:
    data = data_of(node)
    return [("train", data.train), ("val", data.val)]


def _name(node: Node, choice: str) -> str:
    return Path(node["root"]).name if node.get("root") else choice


@cache
def _digest(split: DetectionDataset) -> str:
    """Once a process: COCO's annotations take seconds."""
    told = json.dumps([split.coco.dataset[kind] for kind in KINDS], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
