"""The words of a command line as people type them, made into what Hydra's grammar reads."""

import os
from argparse import ArgumentParser
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from ghm.settings.paths import PATHS, expanded

GRAMMAR = "()[]{}'\"\\"  # a value with one of these is meant for Hydra


def read(words: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, with their values, and its overrides, in whatever order they were given.

    ValueError for an unknown flag, or a key that is given twice.
    """
    parser: ArgumentParser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print its usage and exit
    # `--info` takes a value only from its own list.
    words = [
        "--info=all" if word in ("--info", "-i") and "=" in following else word
        for word, following in zip(words, [*words[1:], ""], strict=False)
    ]
    parsed = parser.parse_intermixed_args(words)
    if parsed.experimental_rerun is not None:  # it unpickles a file, which can run code
        raise ValueError("--experimental-rerun: is not offered; give the overrides in the run's .hydra/overrides.yaml")
    flags = list(words)
    for override in parsed.overrides:
        flags.remove(override)
    overrides = [_readable(word) for word in parsed.overrides]
    refuse_twice(overrides)
    overrides.sort(key=lambda word: word.startswith("+scale="))  # behind what it makes smaller: the last one counts
    return flags, overrides


def refuse_twice(overrides: list[str]) -> None:
    """ValueError for a key that two of the overrides set."""
    seen: dict[str, str] = {}
    for word in overrides:
        override = _parsed(word)
        if override is None or override.is_delete():
            continue
        key = override.get_key_element().lstrip("+")
        if key in seen:
            raise ValueError(f"{word}: {key} is given twice, as {seen[key]} too; keep one of them")
        seen[key] = word


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message}; ghm train --help lists what there is")


def _readable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or not value:
        return word
    override = _parsed(word)
    if key.lstrip("+") not in PATHS:
        return word if override is not None or any(sign in value for sign in GRAMMAR) else f"{key}={_quoted(value)}"
    if value[0] in "'\"" or "${" in value or value in ("null", "???"):
        return word
    path = expanded(value)  # one word to the shell is one path, whatever Hydra's grammar would make of it
    parts = [expanded(part) for part in value.split(",")]
    if not os.path.exists(path) and len(parts) > 1 and all(map(os.path.exists, parts)):  # a sweep over folders
        return f"{key}={','.join(map(_quoted, parts))}"
    if not os.path.exists(path) and override is not None and override.is_sweep_override():
        return word
    return f"{key}={_quoted(path)}"


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
