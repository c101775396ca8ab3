"""What a run is, for those who look at it in MLflow: who ran what, on which data, with which settings."""

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ghm import provenance
from ghm.job import Job
from ghm.record import devices, same
from ghm.settings import datasets
from ghm.tracking import SAME, Spool

# Settings that are columns of MLflow's table of runs; so are the losses', and what a command or a sweep gave.
# All others are in config/config.yaml.
COMPARED = (
    *("epochs", "batch_size", "seed", "optimizer.lr", "strength_warmup"),
    *("data.val_share", "data.split_seed", "data.label_noise"),
)


def describe(spool: Spool, job: Job, cfg: DictConfig) -> None:
    """Record all that the run depends on: config, overrides, data, versions of packages, once."""
    key, place, source = job.key, job.place, provenance.source()
    tags: dict[str, object] = {"sweep.name": key.sweep, "sweep.trial": key.trial, "sweep.params": key.params}
    tags = {name: value for name, value in tags.items() if value is not None}
    tags |= {"dir": place.folder, "settings": job.settings.fingerprint, "attempt": key.attempt}
    tags |= provenance.origin(source["commit"], cfg.trial.command)
    tags[SAME] = _same(spool, job, cfg)
    spool.start(key.label or place.folder.name, tags, parent=key.parent, key=key.record)
    if any("params" in entry for entry in spool.entries()):
        return
    spool.log_text(OmegaConf.to_yaml(cfg, resolve=True), "config/config.yaml")
    spool.log_text(json.dumps(provenance.packages(), indent=2), "config/packages.json")
    if source["diff"]:
        spool.log_text(source["diff"], "config/source.diff")
    overrides = place.folder / ".hydra" / "overrides.yaml"
    if overrides.exists():
        spool.log_file(overrides, "config")
    data = job.settings.parts["data"]
    if data.get("val_share") is not None:
        spool.log_text(json.dumps(datasets.division(data), indent=2), "config/division.json")
    spool.log_datasets(datasets.described(data, cfg.choices.get("data", "data")))
    spool.log_params(_params(job, cfg))  # last: says that all of it is there


def _same(spool: Spool, job: Job, cfg: DictConfig) -> str:
    """What other runs are the same by; empty where nobody can tell, or where it began as another run."""
    if job.place.workers:
        on = devices.possible(job.settings.device, job.place.gpus)
    else:
        on = [devices.here(job.settings.device)]
    key = same.key(job, on[0]) if len(on) == 1 else None
    begun = [entry["start"]["tags"].get(SAME) for entry in spool.entries() if "start" in entry]
    elsewhere = not begun and cfg.trial.epochs > 0
    return key if key is not None and not elsewhere and all(one == key for one in begun) else ""


def _params(job: Job, cfg: DictConfig) -> dict[str, Any]:
    """By name: the choices of files, and of the settings those that people compare."""
    asked = provenance.given(job.place.folder) | set(json.loads(job.key.params or "{}"))
    settings = {
        key: value
        for key, value in job.settings.flat().items()
        if (key in COMPARED or key in asked or key.startswith("loss."))
        and not key.endswith("_target_")
        and value is not None
    }
    return dict(cfg.choices) | settings
