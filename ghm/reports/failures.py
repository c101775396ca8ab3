"""The trials that failed, by what they failed of."""

import re
from dataclasses import dataclass

from ghm.reports.sweep import SweepResult
from sweeps.states import State

FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)


@dataclass(frozen=True)
class Failures:
    """Trials that ended in the same way: `reason` and `traceback` are those of the first."""

    trials: list[int]
    reason: str
    traceback: str


def failures(sweep: SweepResult) -> list[Failures]:
    """The most frequent first. The same: the same kind of error from the same line of code, whatever it says."""
    groups: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    failed = sweep.trials[sweep.trials["state"] == State.FAILED].sort_values("trial")
    for trial, error in zip(failed["trial"], failed["error"], strict=True):
        groups.setdefault(_kind(str(error)), []).append((int(trial), str(error)))
    made = [
        Failures([trial for trial, _ in ended], last_line(ended[0][1]), ended[0][1].strip())
        for ended in groups.values()
    ]
    return sorted(made, key=lambda one: -len(one.trials))


def _kind(error: str) -> tuple[str, ...]:
    frames = FRAME.findall(error)
    if frames:
        return (*frames[-1], last_line(error).split(":")[0])
    return (re.sub(r"\d+", "0", last_line(error)),)


def last_line(error: str) -> str:
    """Of a traceback: what was raised."""
    return (error.strip().splitlines() or [""])[-1]
