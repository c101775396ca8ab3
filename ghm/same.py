"""Which runs are the same: of equal settings, code, data, versions and devices, so that one of them is enough."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ghm import parts
from ghm.job import Job, canonical

# What decides a run's numbers of our own code; the rest starts runs, records them and shows them.
ROOMS = ("losses", "models", "data", "training", "scoring", "operators.py", "parts.py", "worker.py")
VERSIONS = ("torch", "torchvision", "numpy", "pillow", "pycocotools")
# Settings that change no number: which metric a sweep is after, and where the data lie, as their contents count.
ELSEWHERE = ("objective", "data.root", "device")
_HERE = Path(__file__).resolve().parent


def key(job: Job, cfg: DictConfig, device: str) -> str | None:
    """Equal for runs of equal numbers, on a device as `ghm.devices` names it.

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
        "data": parts.fingerprint(cfg),
        "code": code(tuple(sorted(_foreign(settings)))),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }
    return _hash(json.dumps(made_of, sort_keys=True).encode())


@cache
def code(modules: tuple[str, ...] = ()) -> str:
    """Of the source that decides a run's numbers, and of the modules of others that its config names.

    Once in a process: what is edited later it does not run.
    """
    roots = [_HERE / room for room in ROOMS]
    for module in modules:
        spec = importlib.util.find_spec(module)
        places = [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]
        roots += [Path(place) for place in places if os.path.exists(place)]
    files = [path for root in roots for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return _hash(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _foreign(settings: dict[str, Any]) -> set[str]:
    """The packages of others that settings name, to be called."""
    named = {str(value).split(".")[0] for name, value in settings.items() if name.split(".")[-1] == "_target_"}
    return named - {"ghm", "torch", "torchvision"}


def _state(path: str) -> tuple[str, int, int]:
    state = os.stat(path)
    return os.path.basename(path), state.st_size, state.st_mtime_ns


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
