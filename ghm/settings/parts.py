"""The parts of a run, made from its config, and all that can be known to be wrong before it starts."""

import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ghm import scoring
from ghm.data import Data, DetectionDataset
from ghm.data.loader import Batches
from ghm.job import group_sizes
from ghm.settings import foreign, targets
from ghm.settings.paths import expanded
from ghm.training.engine import AMP, moving_average

# Choices of files in conf/, which Hydra writes with a slash.
GROUPS = (
    "data",
    "data.augment",
    "model",
    "loss",
    "loss.cls",
    "loss.box",
    "optimizer",
    "schedule",
    "scaling",
    "tracking",
)

KINDS = ("images", "annotations", "categories")  # of what annotations list

# Keys that hold a whole number, and the least that makes sense.
WHOLE = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "seed": 0,
    "loader_processes": 0,
    "keep": 1,
    "threads": 1,
}


def build(cfg: DictConfig, node: str, *args: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of a config node with its keys; ValueError names the node that is at fault."""
    settings = OmegaConf.select(cfg, node)
    try:
        return targets.call(settings, _partial_=True, _convert_="all")(*args, **kwargs)
    except (ValueError, TypeError, InstantiationException) as error:
        reason = " ".join(str(error).split())
        if re.match(r"\w+=", reason):  # ours say `bins=0: ...`; the command line knows it as `loss.cls.bins=0: ...`
            raise ValueError(f"{node}.{reason}") from error
        if re.match(r"[\w./-]+[=:]", reason):  # already names the key or the file
            raise ValueError(reason) from error
        given = ", ".join(f"{node}.{key}={value}" for key, value in settings.items() if key != "_target_")
        raise ValueError(f"{node}: {reason}; given {given}") from error


def build_model(cfg: DictConfig, num_classes: int) -> nn.Module:
    losses = {name: None if cfg.loss[name] is None else build(cfg, f"loss.{name}") for name in ("cls", "box")}
    return build(
        cfg, "model", num_classes=num_classes, cls_loss=losses["cls"], box_loss=losses["box"], prior=cfg.loss.prior
    )


def build_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """Its rate is meant for `lr_batch` images a step, and scaled to those of this run (Goyal et al. 2017)."""
    optimizer: Optimizer = build(cfg, "optimizer", model.parameters())
    if cfg.lr_batch is not None:
        for group in optimizer.param_groups:
            group["lr"] *= cfg.batch_size / cfg.lr_batch
    return optimizer


def recipe(cfg: DictConfig, class_names: list[str]) -> dict[str, Any]:
    """What a checkpoint says of its model, so that it can be built again without its run's config."""
    parts = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("model", "loss", "data")}
    if "weights" in parts["model"]:
        parts["model"]["weights"] = None  # the checkpoint holds better ones
    parts["data"].pop("augment", None)  # for training alone
    return {**parts, "class_names": class_names}


def from_recipe(made: dict[str, Any], path: str) -> DictConfig:
    """A config of a checkpoint's recipe; ValueError for one that would call anything but our own parts.

    A checkpoint may come from anybody: only known parts are built.
    """
    foreign.refuse(made, f"checkpoint={path}", "evaluate it where it was made")
    return OmegaConf.create(made)


def check(cfg: DictConfig) -> None:
    """Everything that can be known to be wrong before a run starts; ValueError names key, value, remedy."""
    for key in GROUPS:
        if isinstance(value := OmegaConf.select(cfg, key), str):
            raise ValueError(f"{key}={value}: is a choice of files, not a value; write {key.replace('.', '/')}={value}")
    check_writable(Path(cfg.cwd) / expanded(cfg.runs))
    made_of = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(made_of, dict)
    for key in sorted(key for key, value in foreign.leaves(made_of) if value == "???"):
        raise ValueError(f"{key}=???: has no value; give one, as in {key}=VALUE")
    for key, least in WHOLE.items():
        value = OmegaConf.select(cfg, key)
        if not _whole(value) or value < least:
            raise ValueError(f"{key}={value}: must be a whole number of at least {least}")
    for key in ("data", "model", "loss", "optimizer", "schedule"):
        if OmegaConf.select(cfg, key) is None:
            raise ValueError(f"{key}=null: must be chosen; leave it out to get the default")
    for one, other in (("cls", "box"), ("box", "cls")):  # both, for models with losses of their own
        if cfg.loss[one] is None and cfg.loss[other] is not None:
            raise ValueError(f"loss.{one}=null: must be chosen; leave it out to get the default")
    _check_group(cfg.scaling.num_workers)
    _check_numbers(cfg)
    names = [*(f"val/{name}" for name in scoring.METRICS), "time/images_per_s", "model/parameters"]
    for objective in [cfg.objective] if isinstance(cfg.objective, str) else cfg.objective or [cfg.objective]:
        if objective not in names:
            raise ValueError(f"objective={objective}: must be one of {', '.join(names)}")
    data = _data(OmegaConf.to_yaml(cfg.data, resolve=True))
    if not data.val.has_boxes:
        raise ValueError(
            f"data.val={cfg.data.val}: lists images without boxes, on which nothing can be scored; "
            "train with another, and use ghm evaluate for this one"
        )
    _check_model(json.dumps({key: made_of[key] for key in ("model", "loss")}), data.train.num_classes)
    steps = {key: made_of[key] for key in ("optimizer", "schedule", "lr_batch", "batch_size", "epochs", "ema")}
    _check_steps(json.dumps(steps))
    least, most = group_sizes(cfg.scaling.num_workers)
    for workers in range(max(least, 1), max(most, 1) + 1):
        Batches([True] * cfg.batch_size, cfg.batch_size, cfg.seed, 0, workers, cfg.accumulate)


@cache
def _check_steps(parts: str) -> None:
    """ValueError for an optimizer, a schedule or an average that cannot be made of these settings, in JSON."""
    cfg = OmegaConf.create(json.loads(parts))
    something = nn.Linear(1, 1)  # optimizers refuse what is on meta
    build(cfg, "schedule", build_optimizer(cfg, something), cfg.epochs, steps_per_epoch=1)
    if cfg.ema is not None:
        moving_average(something, cfg.ema)


@cache
def _check_model(parts: str, num_classes: int) -> None:
    """ValueError for a model that cannot be made of these parts, in JSON: of settings and shapes, without memory."""
    with torch.device("meta"):
        build_model(OmegaConf.create(json.loads(parts)), num_classes)


def check_writable(runs: Path) -> None:
    """ValueError where nothing can be written; what writes there later would try again and again first."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=runs):
            pass
        for path in runs.glob("*.db"):
            with path.open("r+b"):
                pass
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        raise ValueError(f"runs={runs}: cannot be written ({reason}); give runs=FOLDER, or set GHM_RUNS") from error


def _check_group(num_workers: Any) -> None:
    if _whole(num_workers) and num_workers >= 0:
        return
    sizes = list(num_workers) if isinstance(num_workers, ListConfig) else []
    if len(sizes) != 2 or not all(map(_whole, sizes)) or not 1 <= sizes[0] <= sizes[1]:
        raise ValueError(
            f"scaling.num_workers={num_workers}: must be a whole number, or the least and the most of them, as [1,4]"
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(cfg: DictConfig) -> None:
    """What no constructor sees."""
    if cfg.clip_grad is not None and not (isinstance(cfg.clip_grad, int | float) and cfg.clip_grad > 0):
        raise ValueError(f"clip_grad={cfg.clip_grad}: must be above 0, or null for none")
    if cfg.lr_batch is not None and not (isinstance(cfg.lr_batch, int | float) and cfg.lr_batch > 0):
        raise ValueError(f"lr_batch={cfg.lr_batch}: must be above 0, or null for a rate that is never scaled")
    for key in ("scaling.cpus", "scaling.gpus", "scaling.resize", "scaling.slot.cpus", "scaling.slot.gpus"):
        value = OmegaConf.select(cfg, key)
        if value is not None and not (isinstance(value, int | float) and value >= 0):
            raise ValueError(f"{key}={value}: must be a number of at least 0")
    for key, choices in (("device", ("auto", "cpu", "cuda")), ("amp", (None, *AMP))):
        if cfg[key] not in choices:
            named = ", ".join(choice or "null" for choice in choices)
            raise ValueError(f"{key}={cfg[key]}: must be one of {named}")
    for key in ("channels_last", "compile", "figures"):
        if not isinstance(cfg[key], bool):
            raise ValueError(f"{key}={cfg[key]}: must be true or false")
    elsewhere = group_sizes(cfg.scaling.num_workers)[1] or (cfg.scaling.slot.gpus and cfg.trial.hub is None)
    if cfg.device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; leave it at auto")


def division(cfg: DictConfig) -> dict[str, list[str]]:
    """The images of train and val, by file name."""
    data = _data(OmegaConf.to_yaml(cfg.data, resolve=True))
    splits = {"train": data.train.coco, "val": data.val.coco}
    return {name: [image["file_name"] for image in coco.dataset["images"]] for name, coco in splits.items()}


def datasets(cfg: DictConfig) -> list[dict[str, str]]:
    """Of train and val: name, digest (of images and boxes), where they are from, and how many."""
    name = Path(root).name if (root := OmegaConf.select(cfg, "data.root")) else cfg.choices.get("data", "data")
    return _datasets(OmegaConf.to_yaml(cfg.data, resolve=True), str(name))


@cache
def _digest(split: DetectionDataset) -> str:
    """Once a process: COCO's annotations take seconds."""
    told = json.dumps([split.coco.dataset[kind] for kind in KINDS], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@cache
def _datasets(data: str, name: str) -> list[dict[str, str]]:
    made, described = _data(data), []
    for context, split in (("train", made.train), ("val", made.val)):
        counts = {kind: len(split.coco.dataset[kind]) for kind in KINDS}
        digest = _digest(split)
        described.append(
            {
                "name": f"{name} {context}",
                "digest": digest,
                "context": context,
                "source": data,
                "profile": json.dumps(counts),
            }
        )
    return described


def digests(node: dict[str, Any]) -> dict[str, str]:
    """Of train and val, by name, as far as they are read: what is drawn depends on its data node and code alone."""
    return dict(_digests(json.dumps(node)))


@cache
def _digests(node: str) -> dict[str, str]:
    made, name = _data(_yaml(node)), Path(json.loads(node).get("root") or "data").name
    splits = {f"{name} train": made.train, f"{name} val": made.val}
    return {name: _digest(split) for name, split in splits.items() if not split.drawn}


def fingerprint(node: dict[str, Any]) -> str:
    """Of all that a run reads, by its data node: annotations, and of each image file its size and time.

    The bytes of the images are not read: COCO's would take minutes.
    """
    return _fingerprint(json.dumps(node))


def _yaml(node: str) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(json.loads(node)))


@cache
def _fingerprint(node: str) -> str:
    made, told = _data(_yaml(node)), []
    for split in (made.train, made.val):
        if not split.drawn:
            told.append(_digest(split))
        if split.locate is not None:
            states = [os.stat(split.locate(entry)) for entry in split.coco.dataset["images"]]
            told += [f"{state.st_size} {state.st_mtime_ns}" for state in states]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@cache
def _data(data: str) -> Data:
    """The data that a config node, as YAML, describes; checked once, however many trials share it."""
    return build(OmegaConf.create({"data": OmegaConf.create(data)}), "data")
