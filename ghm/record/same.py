"""Which runs are the same: of equal settings, code, data, versions and devices, so that one of them is enough."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ghm.job import Job, canonical
from ghm.settings import datasets

# What decides a run's numbers of our own code; the rest starts runs, records them and shows them.
ROOMS = ("losses", "models", "data", "training", "scoring", "operators.py", "settings/parts.py", "worker.py")
VERSIONS = ("torch", "torchvision", "numpy", "pillow", "pycocotools")
# Settings that change no number: which metric a sweep is after, and where the data lie, as their contents count.
ELSEWHERE = ("objective", "data.root", "device")
_PACKAGE = Path(__file__).resolve().parents[1]


def key(job: Job, device: str) -> str | None:
    """Equal for runs of equal numbers, on a device as `ghm.record.devices` names it.

    None where it cannot be told: for a group of workers that changes its size.
    """
    if job.place.workers != job.place.least_workers:
        return None
    settings = {name: value for name, value in job.settings.flat().items() if name not in ELSEWHERE}
    made_of = {
        "settings": canonical(settings),
        "files": [_state(value) for value in settings.values() if isinstance(value, str) and os.path.isfile(value)],
        "workers": job.place.workers,
        "device": device,
        "data": datasets.fingerprint(job.settings.parts["data"]),
        "code": code(),
        "modules": _modules(settings),
        "versions": _versions(),
    }
    return _hash(json.dumps(made_of, sort_keys=True).encode())


def inputs(job: Job) -> dict[str, str]:
    """What a run reads beside its settings: code, modules of others, versions, data; each with what tells it apart."""
    return (
        {"the code of ghm": code()}
        | _modules(job.settings.flat())
        | _versions()
        | datasets.digests(job.settings.parts["data"])
    )


def refuse_changed(job: Job, before: str | None) -> None:
    """ValueError for a sweep's run that would read something else than `before`, as JSON, when its sweep began."""
    if before is None:
        return
    now = inputs(job)
    changed = [name for name, told in json.loads(before).items() if now.get(name) != told]
    if changed:
        raise ValueError(
            f"{', '.join(changed)}: not what it was when the sweep was started; put it back, or begin anew with "
            "another hydra.sweeper.study_name"
        )


@cache
def code() -> str:
    """Of the source that decides a run's numbers; once in a process, as what is edited later it does not run."""
    return _source([_PACKAGE / room for room in ROOMS])


def _modules(settings: dict[str, Any]) -> dict[str, str]:
    """The packages of others that settings name, to be called, with their source."""
    named = {str(value).split(".")[0] for name, value in settings.items() if name.split(".")[-1] == "_target_"}
    return {name: _module(name) for name in sorted(named - {"ghm", "torch", "torchvision"})}


@cache
def _module(name: str) -> str:
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]
    return _source([Path(place) for place in places if os.path.exists(place)])


def _source(roots: Sequence[Path]) -> str:
    files = [path for root in roots for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return _hash(b"".join(path.name.encode() + path.read_bytes() for path in files))


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def _state(path: str) -> tuple[str, int, int]:
    state = os.stat(path)
    return os.path.basename(path), state.st_size, state.st_mtime_ns


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
