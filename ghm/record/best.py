"""The best trial of a sweep as a file that Hydra composes with: `ghm train --config-dir runs/conf +best=SWEEP`."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ghm.job import PARTS, PLACE, canonical
from ghm.provenance import flat, write_atomically
from ghm.secrets import without_secrets

GROUP = "best"
# What a comparison of several gives anew.
ANEW = ("seed", "device", "objective")


def write(
    config: Mapping[str, Any],
    swept: Collection[str],
    compose: Callable[[list[str]], DictConfig],
    told: str,
    path: Path,
) -> None:
    """Write a training's recorded config: which files it is of, and what these do not say themselves.

    `compose` makes a config of overrides; `told` says whose it is. What was `swept` is written although the files say
    the same: on another day they may not.
    """
    chosen: dict[str, str] = config["choices"]
    base = compose([f"{group}={choice}" for group, choice in chosen.items()])
    names = [name for name in config if name not in (*PARTS, *PLACE, *ANEW)]
    values = _own({name: config[name] for name in names}, {name: _plain(base, name) for name in names}, swept)
    for name, value in values.items():  # which values of files refer to
        OmegaConf.update(base, name, value, force_add=True)
    for part in PARTS:
        values |= _own(flat(config[part], part), flat(_plain(base, part), part), swept)
    made = OmegaConf.create({"defaults": [{f"override /{group}": choice} for group, choice in chosen.items()]})
    made.defaults.append("_self_")
    for key, value in without_secrets(values).items():
        OmegaConf.update(made, key, value)
    comment = "".join(f"# {line}\n" for line in told.splitlines())
    write_atomically(path, f"# @package _global_\n{comment}{OmegaConf.to_yaml(made)}")


def _own(values: Mapping[str, Any], of_files: Mapping[str, Any], swept: Collection[str]) -> dict[str, Any]:
    """The values that their files do not have, or that were swept."""
    return {
        key: value
        for key, value in values.items()
        if key in swept or key not in of_files or canonical(of_files[key]) != canonical(value)
    }


def _plain(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
