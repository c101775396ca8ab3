"""What a run records, on disk first: writing waits for no server, and outlives the process that wrote."""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ghm.secrets import hidden
from sweeps.states import State

SPOOL, SENT = "metrics.jsonl", "metrics.sent.json"
# What MLflow calls the states of a run; `sweep.state` tells pruned from cancelled, which MLflow does not.
STATUS = {
    State.QUEUED: "KILLED",  # MLflow would show a scheduled run as one that never began
    State.DONE: "FINISHED",
    State.FAILED: "FAILED",
    State.PRUNED: "KILLED",
    State.CANCELLED: "KILLED",
}


class Spool:
    """The record of the run in `folder`: one JSON line an entry, in order, sent on by `sender.send`.

    `attempt` counts how often the run was started; what an older attempt still writes is not sent.
    OSError when the disk refuses a line, of which then nothing counts.
    """

    def __init__(self, folder: Path, attempt: int = 1) -> None:
        self.folder, self.attempt = folder, attempt
        self.path = folder / SPOOL

    @property
    def key(self) -> str | None:
        """What the MLflow run is found by, wherever it was begun; None before `start`."""
        return next((entry["start"]["key"] for entry in self.entries() if "start" in entry), None)

    def start(self, name: str, tags: Mapping[str, object], parent: str | None = None, key: str | None = None) -> None:
        """The run begins, or goes on. `parent` is the key of its sweep's run; `key` its own, drawn if None."""
        tags = {"attempt": str(self.attempt)} | {name: hidden(str(value)) for name, value in tags.items()}
        key = self.key or key or uuid.uuid4().hex
        self._append(start={"key": key, "name": name, "tags": tags, "parent": parent})

    def join(self, key: str) -> None:
        """Record here what belongs to the run with this key, which was begun on another machine."""
        self._append(start={"key": key, "name": "", "tags": {}, "parent": None, "create": False})

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: int | None = None) -> None:
        """The values of a step, `at` milliseconds of the epoch (None: now); a step sent before is not sent again."""
        self._append(at, metrics={key: float(value) for key, value in metrics.items()}, step=step)

    def last_step(self) -> int:
        """Of all metrics written; -1 without any."""
        return max((entry["step"] for entry in self.entries() if "metrics" in entry), default=-1)

    def last_metrics(self) -> dict[str, float]:
        """The values written last of each metric of the last step."""
        last = -1
        found: dict[str, float] = {}
        for entry in self.entries():
            if "metrics" in entry and entry["step"] >= last:
                found = (found if entry["step"] == last else {}) | entry["metrics"]
                last = entry["step"]
        return found

    def params(self) -> dict[str, str]:
        """All that were written."""
        found: dict[str, str] = {}
        for entry in self.entries():
            found |= entry.get("params", {})
        return found

    def log_datasets(self, datasets: Sequence[Mapping[str, str]]) -> None:
        """What the run reads: name, digest, context, source and profile of each."""
        self._append(datasets=[{key: hidden(value) for key, value in dataset.items()} for dataset in datasets])

    def share(self, key: str, view: str) -> None:
        """A view of runs that MLflow is to keep under this key."""
        self._append(share=key, view=view)

    def log_params(self, params: Mapping[str, object]) -> None:
        self._append(params={key: hidden(str(value)) for key, value in params.items()})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self._append(tags={key: hidden(str(value)) for key, value in tags.items()})

    def log_file(self, path: Path, folder: str) -> None:
        """The file is read when it is sent, and has to stay until then."""
        self._append(file=str(path), folder=folder)

    def log_text(self, text: str, path: str) -> None:
        self._append(text=hidden(text), path=path)

    def finish(self, state: State) -> None:
        """The run has ended; as QUEUED when it is to go on later."""
        self._append(finish=STATUS[state], state=state)

    def entries(self) -> Iterator[dict[str, Any]]:
        """All that was written, in order."""
        return (entry for _, entry in read(self.path, 0))

    def attempts(self) -> int:
        """How often the run was started; 0 before it was."""
        return max((entry["attempt"] for entry in self.entries() if entry), default=0)

    def state(self) -> State | None:
        """RUNNING, or the state that the run was finished with last; None if it never began."""
        last = None
        for entry in self.entries():
            last = State.RUNNING if "start" in entry else entry.get("state", last)
        return None if last is None else State(last)

    def _append(self, at: int | None = None, **entry: Any) -> None:
        now = int(time.time() * 1000) if at is None else at
        line = json.dumps({"attempt": self.attempt, "at": now} | entry).encode() + b"\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".writing.lock"), self.path.open("ab+", buffering=0) as file:
            # A line torn by a full disk or a dying machine is ended, so that it spoils itself alone.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            if (written := file.write(line)) != len(line):
                raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")


def read(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines from `offset` on, each with the offset behind it; torn ones are an empty entry."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {}
            yield offset, entry if isinstance(entry, dict) else {}
