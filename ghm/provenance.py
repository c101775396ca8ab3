"""What a run depended on: the commit of this source, the versions of its packages, its settings."""

import getpass
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ghm.secrets import hidden, without_secrets

SOURCE = "source.json"  # in the package's folder, in code that was packed up: what `source` says
MOST = 1_000_000  # characters of a diff
_PACKAGE = Path(__file__).resolve().parent
PACKAGES = ("ghm", "torch", "torchvision", "ray", "hydra-core", "optuna", "mlflow", "pycocotools", "numpy")


def source() -> dict[str, str]:
    """The commit of this source tree, marked "-dirty" when files differ from it, and how they differ.

    "unknown" and nothing outside of git. Code that was packed up has both with it.
    """
    packed = _PACKAGE / SOURCE
    if packed.exists():
        found: dict[str, str] = json.loads(packed.read_text())
        return found
    try:
        return {
            "commit": _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").strip(),
            "diff": _git("diff", "HEAD", "--", "ghm", "sweeps", "conf")[:MOST],
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "diff": ""}


def _git(*words: str) -> str:
    command = ["git", "-C", str(_PACKAGE.parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def command() -> str:
    """The command line that this process was given, without secrets."""
    return hidden(" ".join([sys.argv[0], shlex.join(sys.argv[1:])]).strip())


def origin(commit: str, said: str | None = None) -> dict[str, str]:
    """MLflow's tags for who ran what: user, command (`said`, or this process's), commit."""
    tags = {
        "mlflow.source.name": said or command(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "machine": f"{platform.node()}, {os.cpu_count()} CPUs",
    }
    with suppress(OSError, KeyError):  # in a container nobody may be known by the number
        tags["mlflow.user"] = getpass.getuser()
    return tags


def packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def record(folder: Path, config: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Write what Hydra leaves in a job's folder, without passwords: .hydra/config.yaml and .hydra/overrides.yaml."""
    place = folder / ".hydra"
    place.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(without_secrets(config)), place / "config.yaml")
    OmegaConf.save(OmegaConf.create(without_secrets(list(overrides))), place / "overrides.yaml")


def given(folder: Path) -> set[str]:
    """The keys that the command which `record`ed itself in a folder gave; none where none did."""
    recorded = folder / ".hydra" / "overrides.yaml"
    overrides = OmegaConf.load(recorded) if recorded.exists() else []
    return {str(override).lstrip("+~").split("=")[0] for override in overrides}


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Nested settings as one level: {"loss": {"cls": 1}} becomes {"loss.cls": 1}."""
    if not isinstance(node, dict):
        return {path: node}
    return {
        key: value for name, child in node.items() for key, value in flat(child, f"{path}.{name}".strip(".")).items()
    }
