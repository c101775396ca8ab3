"""What is odd about a data set but does not stop a run: one line a kind, with how often and the first example."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class Findings:
    """Collects what is found in one place (a file, or a folder) until it is said."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._examples: dict[str, list[str]] = {}

    def add(self, what: str, example: str) -> None:
        self._examples.setdefault(what, []).append(example)

    def say(self) -> None:
        """Warn of each kind once, in the order in which they were found."""
        for what, examples in self._examples.items():
            log.warning("%s: %s (%d; first: %s)", self.where, what, len(examples), examples[0])
