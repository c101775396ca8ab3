"""What a run depended on: the commit of this source, the versions of its packages, its settings."""

import importlib.metadata
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ghm.secrets import without_secrets

PACKAGES = ("ghm", "torch", "torchvision", "ray", "hydra-core", "optuna", "mlflow", "pycocotools", "numpy")


def commit() -> str:
    """The commit of this source tree, marked "-dirty" when files differ from it; "unknown" outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def record(folder: Path, config: DictConfig, overrides: Iterable[str]) -> None:
    """Write what Hydra leaves in a job's folder, without passwords: .hydra/config.yaml and .hydra/overrides.yaml."""
    place = folder / ".hydra"
    place.mkdir(parents=True, exist_ok=True)
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    OmegaConf.save(OmegaConf.create(without_secrets(resolved)), place / "config.yaml")
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
