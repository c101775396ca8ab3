"""All that can be known to be wrong with a config before its run starts."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ghm import scoring
from ghm.data.loader import Batches
from ghm.job import group_sizes
from ghm.settings import foreign
from ghm.settings.parts import build, build_model, build_optimizer, data_of
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
    data = data_of(made_of["data"])
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
