"""What a sweep would do: its trainings, which are known or twice the same, and what they take, by what others took."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from ghm.tracking import Record

# What the time of an epoch depends on, the most telling first: of past runs those count that agree on the longest part.
TELLING = ("model", "data", "loss/cls", "loss/box", "batch_size", "data.image_size", "data.train_images", "amp")


@dataclass(frozen=True)
class Past:
    """A run that ended: what it was made of, and what it took for each epoch and on disk."""

    settings: Mapping[str, str]
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Planned:
    """A trial that is to be: `same` is equal for trainings of equal numbers; `runs`, of how many seeds, of which
    `known` were trained before."""

    label: str
    same: str
    epochs: int
    settings: Mapping[str, str]
    state: str = "new"  # or as the study has it
    runs: int = 1
    known: int = 0

    @property
    def to_run(self) -> int:
        return 0 if self.state == "done" else self.runs - self.known


@dataclass(frozen=True)
class Need:
    """Seconds of the clock and of all slots together, bytes; by how many past runs, and in what these differ."""

    wall: float
    work: float
    bytes: int
    runs: int
    other: tuple[str, ...] = ()


def past(records: Iterable[Record]) -> list[Past]:
    """Of MLflow's finished runs those that are trainings."""
    found = []
    for record in records:
        steps = [one.step for one in record.data.to_proto().metrics if one.key == "train/loss"]
        if not steps or steps[0] < 1 or record.info.end_time is None:
            continue
        seconds = (record.info.end_time - record.info.start_time) / 1000 / steps[0]
        folder = Path(record.data.tags.get("dir", ""))
        found.append(Past(record.data.params, seconds, _size(folder) if folder.is_absolute() else 0))
    return found


def _size(folder: Path) -> int:
    """Bytes on disk; what has several names, as the last checkpoint that is also the best, counts once."""
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())


def like(one: Mapping[str, str], known: Sequence[Past]) -> tuple[list[Past], tuple[str, ...]]:
    """The past runs that are most like a training, of the same model and data at least; and in what they differ."""
    for count in range(len(TELLING), 1, -1):
        alike = [run for run in known if all(run.settings.get(key) == one.get(key) for key in TELLING[:count])]
        if alike:
            other = [key for key in TELLING[count:] if any(run.settings.get(key) != one.get(key) for run in alike)]
            return alike, tuple(other)
    return [], ()


def need(planned: Sequence[Planned], known: Sequence[Past], slots: int) -> Need | None:
    """Of the trainings that are still to be done; None where no run like one of them has ended."""
    todo = [one for one in planned if one.to_run]
    seconds: list[float] = []
    size, runs = 0, 0
    differ: dict[str, None] = {}
    for one in todo:
        alike, other = like(one.settings, known)
        if not alike:
            return None
        seconds += [one.epochs * mean(run.seconds for run in alike)] * one.to_run
        size += one.to_run * round(mean(run.bytes for run in alike))
        runs = max(runs, len(alike))
        differ |= dict.fromkeys(other)
    ends = [0.0] * slots
    for each in seconds:  # as a free slot is refilled
        heapq.heapreplace(ends, ends[0] + each)
    return Need(max(ends, default=0.0), sum(seconds), size, runs, tuple(differ))


def twice(planned: Sequence[Planned]) -> list[list[str]]:
    """The trainings that are the same, by label."""
    groups: dict[str, list[str]] = defaultdict(list)
    for one in planned:
        groups[one.same].append(one.label)
    return [labels for labels in groups.values() if len(labels) > 1]


def told(planned: Sequence[Planned], first: int | None, needs: Need | None, slots: int) -> list[str]:
    """What is said of a plan. `first`: how many trials an endless space is to have, of which these are the first."""
    states: dict[str, int] = defaultdict(int)
    for one in planned:
        states[one.state] += 1
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    lines = [f"{len(planned)} trial{'s' if len(planned) != 1 else ''}: {counts}"]
    seeds = max((one.runs for one in planned), default=1)
    if first is not None:
        lines = [f"{first} trials, of which these would be the first {len(planned)} as long as nothing is known of any"]
    if seeds > 1:
        lines[0] += f"; {seeds} seeds of each, unless the race drops it before"
    lines += [f"  {one.label}{_said(one)}" for one in planned]
    for labels in twice(planned):
        lines.append(f"The same training {len(labels)} times: {'; '.join(labels)}")
    if needs is None:
        return [*lines, "Nobody knows yet what they take: no run of such a model on such data has ended here"]
    scale = 1 if first is None else first / len(planned)
    wall, work, size = scale * needs.wall, scale * needs.work, scale * needs.bytes / 1e6
    lines.append(f"Time: about {_clock(wall)} with {slots} at a time, {_clock(work)} of work; disk: {size:.0f} MB")
    but = f", though of other {', '.join(needs.other)}" if needs.other else ""
    return [*lines, f"That is by {needs.runs} runs that have ended{but}"]


def _said(one: Planned) -> str:
    some = f"{one.known} of {one.runs} seeds known" if 0 < one.known < one.runs else ""
    said = ", ".join(filter(None, ["" if one.state == "new" else one.state, some]))
    return f"  ({said})" if said else ""


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
