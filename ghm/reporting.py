"""What a program that a sweep runs says while it runs. Without a sweep nobody listens, and it costs nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class Ended(Exception):
    """The sweep wants this trial to end here: it was pruned, or the sweep itself ends. Let it pass."""


class Listener(Protocol):
    def report(self, step: int, value: float, metrics: Mapping[str, float], steps: int) -> None:
        """Ended where the trial is to end."""


_listener: Listener | None = None


def report(step: int, value: float, metrics: Mapping[str, float] | None = None, steps: int = 0) -> None:
    """The objective after a step of a trial, of which there are `steps` (0: unknown), and other metrics by name.

    Raises `Ended` when the sweep wants the trial to stop here, as its pruner does: `value` is then its result.
    """
    if _listener is not None:
        _listener.report(int(step), float(value), metrics or {}, int(steps))


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within this, `listener` is told what is reported."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
