"""Settings that hold a path, made absolute: meant from where the command was given, with ~ and $VARIABLES."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ lies beside the package, in an installed one within it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

PATHS = ("runs", "dir", "run", "checkpoint", "data.root", "data.train", "data.val", "data.images", "model.weights")
BELOW_ROOT = ("data.train", "data.val", "data.images")


def expanded(path: str) -> str:
    """With the home folder for ~ and the values of $VARIABLES, as a shell puts them."""
    return os.path.expandvars(os.path.expanduser(path))


def absolute(config: DictConfig) -> DictConfig:
    """A resolved copy of a config in which all `PATHS` are absolute: Ray's processes work in folders of their own.

    Three keys may also lie below `data.root`, which comes first, or be no path at all, as the name of a split;
    so may `model.weights`, as the name of torchvision's own.
    """
    return OmegaConf.create(plain(config))


def plain(config: DictConfig) -> dict[str, Any]:
    """`absolute`, as what YAML knows."""
    made: Any = OmegaConf.to_container(config, resolve=True)
    for key in PATHS:
        *above, name = key.split(".")
        node = made
        for one in above:
            node = node.get(one) if isinstance(node, dict) else None
        value = node.get(name) if isinstance(node, dict) else None
        if value is None:
            continue
        path = os.path.abspath(Path(made["cwd"]) / expanded(str(value)))
        if key in BELOW_ROOT:
            root = made["data"].get("root")
            if root is not None and (Path(str(root)) / expanded(str(value))).exists():
                continue
        if key not in (*BELOW_ROOT, "model.weights") or os.path.exists(path):
            node[name] = path
    uri = (made.get("tracking") or {}).get("uri")
    if uri and uri.startswith("sqlite:///"):
        path = os.path.abspath(Path(made["cwd"]) / uri.removeprefix("sqlite:///"))
        made["tracking"]["uri"] = f"sqlite:///{path}"
    return dict(made)
