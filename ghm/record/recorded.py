"""What a run recorded of itself, read from its folder or from MLflow, and how it differs from what is here."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ghm import provenance
from ghm.tracking import SPOOL, Record, Spool, Tracker

Steps = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Recorded:
    """A run that ended: its resolved config, what it was made with, and its metrics by epoch."""

    config: dict[str, Any]
    commit: str
    diff: str
    packages: dict[str, str]
    data: dict[str, str]  # digest, by name
    metrics: Steps


def of_folder(folder: Path) -> Recorded:
    """ValueError for a folder that holds no record of a training."""
    if not (folder / SPOOL).exists():
        raise ValueError(f"run={folder}: holds no run; give the folder of one, or the id of its MLflow run")
    texts: dict[str, str] = {}
    tags: dict[str, str] = {}
    data: dict[str, str] = {}
    metrics: Steps = {}
    for entry in Spool(folder).entries():
        tags |= entry.get("start", {}).get("tags", {})
        data |= {one["name"]: one["digest"] for one in entry.get("datasets", ())}
        if "text" in entry:
            texts[entry["path"]] = entry["text"]
        for name, value in entry.get("metrics", {}).items():
            metrics.setdefault(entry["step"], {}).setdefault(name, value)
    return _made(str(folder), texts, tags, data, metrics)


def of_mlflow(tracker: Tracker, run_id: str) -> Recorded:
    """ValueError for a run that the tracker does not hold, or that is no training."""
    record = tracker.record(run_id)
    texts = _texts(tracker, record)
    metrics: Steps = {}
    for name in record.data.metrics:
        for step, value in tracker.history(run_id, name):
            metrics.setdefault(step, {})[name] = value
    data = {one.dataset.name: one.dataset.digest for one in record.inputs.dataset_inputs}
    return _made(run_id, texts, record.data.tags, data, metrics)


def config_of(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """Of `of_mlflow`, the resolved config alone."""
    return _config(run_id, _texts(tracker, tracker.record(run_id)))


def _texts(tracker: Tracker, record: Record) -> dict[str, str]:
    """What the run recorded of its config, by path."""
    with tempfile.TemporaryDirectory() as folder:
        paths = tracker.download(record.data.tags.get("ghm.key", ""), "config", Path(folder))
        return {f"config/{path.name}": path.read_text() for path in paths}


def _config(where: str, texts: Mapping[str, str]) -> dict[str, Any]:
    try:
        config: dict[str, Any] = yaml.safe_load(texts["config/config.yaml"])
    except (KeyError, yaml.YAMLError) as error:
        raise ValueError(f"run={where}: recorded no config of a training ({error}); give one that did") from error
    return config


def _made(
    where: str, texts: Mapping[str, str], tags: Mapping[str, str], data: dict[str, str], metrics: Steps
) -> Recorded:
    config = _config(where, texts)
    try:
        packages = json.loads(texts["config/packages.json"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"run={where}: recorded no versions of packages ({error}); give one that did") from error
    commit = tags.get("mlflow.source.git.commit", "unknown")
    return Recorded(config, commit, texts.get("config/source.diff", ""), packages, data, metrics)


def differences(recorded: Recorded, data: Mapping[str, str]) -> list[str]:
    """What is not here as it was: code, packages, and of `data` the digests, by name. Empty where all is."""
    source, found = provenance.source(), []
    if source["commit"] != recorded.commit:
        found.append(f"commit {source['commit']}, was {recorded.commit}")
    elif source["diff"] != recorded.diff:
        found.append("files of ghm, sweeps or conf that are not committed")
    here = provenance.packages()
    for name in sorted({*here, *recorded.packages} - {"ghm"}):
        if here.get(name) != recorded.packages.get(name):
            found.append(f"{name} {here.get(name)}, was {recorded.packages.get(name)}")
    for name in sorted({*data, *recorded.data}):
        if data.get(name) != recorded.data.get(name):
            found.append(f"data {name}: {data.get(name)}, was {recorded.data.get(name)}")
    return found


def unequal(before: Steps, now: Steps) -> list[str]:
    """Which metrics are not the same to the last bit, the first epoch first; times are not asked."""
    found = []
    for step in sorted({*before, *now}):
        one, other = before.get(step, {}), now.get(step, {})
        for name in sorted({*one, *other}):
            same = one.get(name) == other.get(name) or (one.get(name) != one.get(name) and name in other)
            if not name.startswith("time/") and not same:
                found.append(f"{name} {other.get(name)} after epoch {step}, was {one.get(name)}")
    return found
