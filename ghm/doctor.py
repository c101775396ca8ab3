"""What a command would find where it runs: disk, GPUs, data, tracking server, database of studies, cluster."""

import base64
import email.utils
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import mlflow
import ray
import torch

from ghm import provenance
from ghm.cluster import connected
from ghm.remote import nodes
from ghm.secrets import hidden
from ghm.settings.checks import check_writable
from ghm.tracking import Tracker
from sweeps.storage import open_storage

LEAST, LITTLE = 1e9, 10e9  # bytes of free disk: too little to keep a run; soon too little
SKEW = 30.0  # seconds between two clocks, above which times in MLflow mislead


class Level(IntEnum):
    """How bad a finding is, and the exit code that it stands for."""

    FINE = 0
    DOUBTFUL = 1
    BROKEN = 2


@dataclass(frozen=True)
class Finding:
    what: str
    level: Level
    said: str
    remedy: str = ""


@dataclass(frozen=True)
class Asked:
    """What the command line and the environment name."""

    runs: Path
    data: str | None
    tracking: str | None
    storage: str | None


def examine(asked: Asked) -> Iterator[Finding]:
    """One finding after the other; none of them ends the rest."""
    yield Finding("versions", Level.FINE, ", ".join(f"{name} {one}" for name, one in provenance.packages().items()))
    yield _disk(asked.runs)
    yield _gpu()
    if asked.data is not None:
        yield _data(Path(asked.data))
    yield from _tracking(asked.tracking, asked.runs)
    yield _studies(asked)
    yield from _cluster(asked)


def _broken(what: str, error: ValueError) -> Finding:
    """Of what refuses with its remedy at the end, as all of ours does."""
    said, _, remedy = str(error).rpartition("; ")
    return Finding(what, Level.BROKEN, said, remedy)


def _disk(runs: Path) -> Finding:
    try:
        check_writable(runs)
    except ValueError as error:
        return _broken("runs", error)
    free = shutil.disk_usage(runs).free
    said = f"{runs}: {free / 1e9:.0f} GB free"
    if free >= LITTLE:
        return Finding("runs", Level.FINE, said)
    return Finding("runs", Level.BROKEN if free < LEAST else Level.DOUBTFUL, said, "make room, or set GHM_RUNS")


def _gpu() -> Finding:
    there = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if there:
        return Finding("GPU", Level.FINE, ", ".join(there))
    if Path("/dev/nvidiactl").exists():
        said = f"there is one, and torch {torch.__version__} sees none"
        return Finding("GPU", Level.BROKEN, said, "install a CUDA build of torch that fits its driver (nvidia-smi)")
    return Finding("GPU", Level.FINE, "none: training is on the processor")


def _data(root: Path) -> Finding:
    if root.is_dir() and os.access(root, os.R_OK):
        return Finding("data", Level.FINE, str(root))
    return Finding("data", Level.BROKEN, f"{root}: no readable folder", "correct GHM_DATA or data.root")


def _tracking(uri: str | None, runs: Path) -> Iterator[Finding]:
    if uri is None or nodes.is_file(uri):
        yield Finding("MLflow", Level.FINE, hidden(uri or f"a database below {runs}"))
        return
    shown = hidden(uri)
    try:
        version, date = _server(uri)
    except OSError as error:
        yield Finding("MLflow", Level.BROKEN, f"{shown}: does not answer ({error})", "start it, or correct its address")
        return
    try:
        Tracker.open(uri, "ghm", str(runs)).reach()
        yield Finding("MLflow", Level.FINE, f"{shown}: lets us in, version {version}")
    except ValueError as error:
        yield _broken("MLflow", error)
    if version and version.split(".")[:2] != mlflow.__version__.split(".")[:2]:
        said = f"the server has {version}, this client {mlflow.__version__}"
        yield Finding("MLflow's version", Level.DOUBTFUL, said, "bring both to one version")
    if date is not None and abs(date - time.time()) > SKEW:
        said = f"the server's clock is {date - time.time():+.0f} s from this one"
        yield Finding("clock", Level.DOUBTFUL, said, "have both machines follow a time server (NTP)")


def _server(uri: str) -> tuple[str, float | None]:
    """Version and clock of a tracking server; no version where that takes an account. OSError without an answer."""
    account = f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    asks = {"Authorization": f"Basic {base64.b64encode(account.encode()).decode()}"} if account != ":" else {}
    try:
        request = urllib.request.Request(f"{uri.rstrip('/')}/version", headers=asks)
        with urllib.request.urlopen(request, timeout=5) as answer:
            version, headers = answer.read(40).decode(errors="replace").strip(), answer.headers
    except urllib.error.HTTPError as error:
        version, headers = "", error.headers
    date = headers.get("Date")
    return version, None if date is None else email.utils.parsedate_to_datetime(date).timestamp()


def _studies(asked: Asked) -> Finding:
    if asked.storage is None:
        return Finding("studies", Level.FINE, f"SQLite below {asked.runs}")
    try:
        open_storage(asked.storage, asked.runs)
    except ValueError as error:
        return Finding("studies", Level.BROKEN, str(error), "start the database, or correct GHM_STORAGE")
    return Finding("studies", Level.FINE, hidden(asked.storage))


def _cluster(asked: Asked) -> Iterator[Finding]:
    if "RAY_ADDRESS" not in os.environ:
        yield Finding("Ray", Level.FINE, "one that starts and ends with each command")
        return
    try:
        with connected():
            yield from _nodes(asked)
    except ValueError as error:
        yield _broken("Ray", error)


def _nodes(asked: Asked) -> Iterator[Finding]:
    there = ray.cluster_resources()
    said = f"{nodes.count()} nodes, {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs"
    yield Finding("Ray", Level.FINE, said)
    for key, uri, remedy in (
        ("studies", asked.storage, "set GHM_STORAGE to a PostgreSQL"),
        ("MLflow", asked.tracking, "set MLFLOW_TRACKING_URI to a tracking server"),
    ):
        try:
            nodes.refuse_file(key, uri, "")
        except ValueError:
            yield Finding(key, Level.BROKEN, "a SQLite file, which lies on one node of several", remedy)
    if nodes.count() > 1 and not nodes.Sight(asked.runs).shared():
        said = f"{asked.runs}: is another folder on some node, so checkpoints go through MLflow"
        yield Finding("shared runs", Level.DOUBTFUL, said, "put it on shared storage (GHM_RUNS)")
