"""The parts of a run, made from its config."""

import json
import re
from functools import cache
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ghm.data import Data
from ghm.settings import foreign, targets


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


def data_of(node: dict[str, Any]) -> Data:
    """The data that a config's `data`, as plain values, describes; checked once, however many trials share it."""
    return _data(json.dumps(node))


@cache
def _data(node: str) -> Data:
    return build(OmegaConf.create({"data": json.loads(node)}), "data")
