"""The parts of a run, made from its config, and all that can be known to be wrong before it starts."""

import re
from functools import cache
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ghm import evaluate
from ghm.tracking import Tracker

# Keys that hold a whole number, and the least that makes sense.
WHOLE = {"epochs": 1, "batch_size": 1, "seed": 0, "loader_processes": 0, "scaling.num_workers": 0}


def build(cfg: DictConfig, node: str, *args: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of a config node with its keys; ValueError names the node that is at fault."""
    settings = OmegaConf.select(cfg, node)
    try:
        return instantiate(settings, _partial_=True, _convert_="all")(*args, **kwargs)
    except (ValueError, TypeError, InstantiationException) as error:
        reason = " ".join(str(error).split())
        if re.match(r"\w+=", reason):  # ours say `bins=0: ...`; the command line knows it as `loss.cls.bins=0: ...`
            raise ValueError(f"{node}.{reason}") from error
        if re.match(r"[\w./-]+[=:]", reason):  # already names the key or the file
            raise ValueError(reason) from error
        given = ", ".join(f"{node}.{key}={value}" for key, value in settings.items() if key != "_target_")
        raise ValueError(f"{node}: {reason}; given {given}") from error


def build_model(cfg: DictConfig, num_classes: int) -> nn.Module:
    losses = {"cls_loss": build(cfg, "loss.cls"), "box_loss": build(cfg, "loss.box")}
    return build(cfg, "model", num_classes=num_classes, prior=cfg.loss.prior, **losses)


def open_tracker(cfg: DictConfig) -> Tracker:
    return Tracker.open(cfg.tracking.uri, cfg.tracking.experiment, cfg.runs)


def check(cfg: DictConfig) -> None:
    """Everything that can be known to be wrong before a run starts; ValueError names key, value, remedy."""
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise ValueError(f"{key}=???: has no value; give one, as in {key}=VALUE")
    for key, least in WHOLE.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key}={value}: must be a whole number of at least {least}")
    for key in ("data", "model", "loss.cls", "loss.box", "optimizer", "schedule"):
        if OmegaConf.select(cfg, key) is None:
            raise ValueError(f"{key}=null: must be chosen; leave it out to get the default")
    _check_numbers(cfg)
    names = [f"val/{name}" for name in evaluate.METRICS]
    if cfg.objective not in names:
        raise ValueError(f"objective={cfg.objective}: must be one of {', '.join(names)}")
    workers = cfg.scaling.num_workers
    if cfg.batch_size % max(workers, 1):
        raise ValueError(f"batch_size={cfg.batch_size}: must be a multiple of scaling.num_workers={workers}")
    num_classes = _num_classes(OmegaConf.to_yaml(cfg.data, resolve=True))
    with torch.device("meta"):  # settings and shapes only: no memory, no time
        model = build_model(cfg, num_classes)
        optimizer = build(cfg, "optimizer", model.parameters())
        build(cfg, "schedule", optimizer, cfg.epochs, steps_per_epoch=1)
    open_tracker(cfg)


def _check_numbers(cfg: DictConfig) -> None:
    """What no constructor sees."""
    if cfg.clip_grad is not None and not (isinstance(cfg.clip_grad, int | float) and cfg.clip_grad > 0):
        raise ValueError(f"clip_grad={cfg.clip_grad}: must be above 0, or null for none")
    devices = ("auto", "cpu", "cuda")
    if cfg.device not in devices:
        raise ValueError(f"device={cfg.device}: must be one of {', '.join(devices)}")
    if cfg.device == "cuda" and cfg.scaling.num_workers == 0 and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; leave it at auto")


@cache
def _num_classes(data: str) -> int:
    """Check the data that a config node, as YAML, describes; once, however many trials share it."""
    return build(OmegaConf.create({"data": OmegaConf.create(data)}), "data").train.num_classes
