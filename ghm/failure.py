"""How a run fails: by itself, or because what it needs was taken from it."""

import errno
from collections.abc import Iterator

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Failed(RuntimeError):
    """A run that began and failed, a sweep with too many of these, or one from which nothing is learned.

    Its traceback is recorded; one line is enough for who asked.
    """


class Lost(RuntimeError):
    """A run's process, machine or memory was lost, or another process goes on with it: no fault of the run's."""


def lost(error: BaseException) -> str | None:
    """Why an exception is no fault of what raised it; None where it is."""
    for cause in _causes(error):
        if isinstance(cause, Lost):
            return str(cause)
        if isinstance(cause, MemoryError):
            return "out of memory"
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return f"the disk is full ({cause})"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
