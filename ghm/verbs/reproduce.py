"""`ghm reproduce RUN`: runs a run again from what it recorded, and says whether its metrics are equal."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ghm.failure import Failed
from ghm.record import recorded
from ghm.record.recorded import Recorded
from ghm.run import train
from ghm.settings import datasets, foreign
from ghm.settings.paths import CONF, absolute
from ghm.tracking import Tracker
from ghm.verbs import composed


def main() -> None:
    composed.name_run()
    composed.run(run, "reproduce")


def run(cfg: DictConfig) -> None:
    """Train again and compare. ValueError for a run that recorded too little, or would use what is none of our parts;
    Failed where its metrics are not those of the record."""
    cfg = absolute(cfg)
    before = _recorded(cfg)
    again = _again(cfg, before)
    node: Any = OmegaConf.to_container(again.data, resolve=True)
    described = datasets.described(node, again.choices.get("data", "data"))
    data = {one["name"]: one["digest"] for one in described}
    other = recorded.differences(before, data)
    for line in other:
        print(f"Not as it was: {line}")
    train(again)
    now = recorded.of_folder(Path(again.dir))
    found = recorded.unequal(before.metrics, now.metrics)
    if found:
        why = f"not as it was: {'; '.join(other)}" if other else "code, packages and data are those of the record"
        more = f", and {len(found) - 1} more values" if len(found) > 1 else ""
        raise Failed(f"run={cfg.run}: is not reproduced: {found[0]}{more}; {why}. The new run is {again.dir}")
    counts = f"{len(now.metrics)} epochs, {sum(map(len, now.metrics.values()))} values"
    print(f"Equal to the last bit: {counts}, but for times. The new run is {again.dir}")


def _recorded(cfg: DictConfig) -> Recorded:
    if cfg.run is None:
        raise ValueError("run=null: names no run; give its folder, as in ghm reproduce runs/single/RUN, or MLflow id")
    run = Path(cfg.run)
    if not run.exists() and composed.ID.fullmatch(run.name):
        tracker = Tracker.open(cfg.tracking.uri, cfg.tracking.experiment, cfg.runs).reach()
        return recorded.of_mlflow(tracker, run.name)
    return recorded.of_folder(run)


def _again(cfg: DictConfig, before: Recorded) -> DictConfig:
    """The config of the new run: the recorded one, in its own place, and no sweep's."""
    foreign.refuse(before.config, f"run={cfg.run}", "if you trust it, name its module in trust=[MODULE]", cfg.trust)
    again = OmegaConf.create(before.config)
    for key in ("cwd", "runs", "dir", "tracking"):
        again[key] = cfg[key]
    again.trial = OmegaConf.load(CONF / "train.yaml").trial
    return again
