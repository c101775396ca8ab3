"""What comes from elsewhere, a checkpoint or the config of somebody's run: only known parts are made of it."""

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OURS = ("ghm.losses", "ghm.models", "ghm.data", "ghm.training")  # by what they list in `__all__`
# And of these packages the classes of a kind: not what loads code, or runs it.
KINDS: dict[str, type] = {
    "torch.nn": nn.Module,
    "torch.optim": Optimizer,
    "torch.optim.lr_scheduler": LRScheduler,
    "torchvision.transforms.v2": nn.Module,
}


def refuse(made: Any, where: str, remedy: str, trust: Sequence[str] = ()) -> None:
    """ValueError for nested settings that name anything else to be called, or look something up as `${...}` does.

    `trust`: modules whose parts may be made, too.
    """
    for key, value in leaves(made):
        named = key.split(".")[-1] == "_target_"
        if (named and not offered(str(value), trust)) or "${" in str(value):
            raise ValueError(f"{where}: its {key}={value} is no part of ghm, torch or torchvision; {remedy}")


def offered(target: str, trust: Sequence[str] = ()) -> bool:
    """Whether a `_target_` is one that may be called."""
    if not re.fullmatch(r"\w+(\.\w+)+", target):
        return False
    module, _, name = target.rpartition(".")
    if module in trust:
        return True
    if module in OURS:
        return name in import_module(module).__all__
    if module in KINDS:
        found = getattr(import_module(module), name, None)
        return isinstance(found, type) and issubclass(found, KINDS[module])
    return False


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested settings, of lists too, with its dotted key."""
    if not isinstance(node, dict | list):
        yield path, node
        return
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(child, f"{path}.{name}".strip("."))
