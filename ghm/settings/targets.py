"""Calls what the `_target_` of a config names, alike with every version of Hydra."""

from typing import Any

import hydra.utils

# From 1.4 on Hydra asks who may be called. Whoever composes a config here may name a class of his own; what comes from
# elsewhere is checked where it is read, as a checkpoint's recipe is.
_UNCHECKED = getattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None)
_POLICY = {} if _UNCHECKED is None else {"_execution_whitelist_": _UNCHECKED}


def call(settings: Any, **keys: Any) -> Any:
    """`hydra.utils.instantiate`, with further keys."""
    return hydra.utils.instantiate(settings, **keys, **_POLICY)
