"""Addresses without the passwords in them: nothing that is printed or written holds one."""

import re
from typing import Any

# What stands before the last @ of an address that names a machine, and query keys that hold secrets.
USER = re.compile(r"(?<=://)(?!/)[^\s'\"]*@")
QUERY = re.compile(r"(?i)([?&;][\w-]*(?:password|passwd|secret|token|key)=)[^\s'\"&;]+")


def hidden(text: str) -> str:
    """The text with *** in place of secrets: `http://me:pass@host/x` becomes `http://***@host/x`."""
    return QUERY.sub(r"\1***", USER.sub("***@", text))


def without_secrets(node: Any) -> Any:
    """Nested settings, each text of them as `hidden` makes it."""
    if isinstance(node, dict):
        return {key: without_secrets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_secrets(value) for value in node]
    return hidden(node) if isinstance(node, str) else node
