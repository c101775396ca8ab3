"""Settings that hold a path, made absolute: meant from where the command was given, with ~ and $VARIABLES."""

import copy
import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).resolve().parent
# In a checkout conf/ lies beside the package, in an installed one within it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

PATHS = ("runs", "dir", "run", "checkpoint", "data.root", "data.train", "data.val", "data.images", "model.weights")
BELOW_ROOT = ("data.train", "data.val", "data.images")


def expanded(path: str) -> str:
    """With the home folder for ~ and the values of $VARIABLES, as a shell puts them."""
    return os.path.expandvars(os.path.expanduser(path))


def absolute(config: DictConfig) -> DictConfig:
    """A copy of a config in which all `PATHS` are absolute: Ray's processes work in folders of their own.

    Three keys may also lie below `data.root`, which comes first, or be no path at all, as the name of a split;
    so may `model.weights`, as the name of torchvision's own.
    """
    config = copy.deepcopy(config)
    for key in PATHS:
        value = OmegaConf.select(config, key)
        if value is None:
            continue
        path = os.path.abspath(Path(config.cwd) / expanded(str(value)))
        if key in BELOW_ROOT:
            root = OmegaConf.select(config, "data.root")
            if root is not None and (Path(str(root)) / expanded(str(value))).exists():
                continue
        if key not in (*BELOW_ROOT, "model.weights") or os.path.exists(path):
            OmegaConf.update(config, key, path)
    uri = OmegaConf.select(config, "tracking.uri")
    if uri and uri.startswith("sqlite:///"):
        path = os.path.abspath(Path(config.cwd) / uri.removeprefix("sqlite:///"))
        OmegaConf.update(config, "tracking.uri", f"sqlite:///{path}")
    return config
