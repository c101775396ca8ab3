"""`ghm evaluate`: any checkpoint on any data, as numbers, tables and figures in a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ghm import scoring
from ghm.data import Data, val_loader
from ghm.scoring import Judgement
from ghm.settings.parts import build, build_model, from_recipe
from ghm.settings.paths import absolute
from ghm.training import checkpoint
from ghm.verbs import composed, table


def main() -> None:
    outcome = composed.run(run, "evaluate")
    if outcome is None:  # --cfg, --info
        return
    numbers, folder = outcome
    if numbers:
        table.show("COCO's numbers", ["", "of 1"], [[name, f"{value:.4f}"] for name, value in numbers.items()])
    else:
        print("There are no true boxes to score against; detections.json is what the COCO server takes.")
    print(f"Written to {folder}")


def run(cfg: DictConfig) -> tuple[dict[str, Any], Path]:
    """Score the checkpoint `cfg.checkpoint` on the validation images of `cfg.data`, or of its own run's data.

    Writes `detections.json` (COCO's result format), and where there are true boxes `metrics.json` and the
    figures. Returns the metrics, empty without true boxes, and the folder. ValueError when
    the data's classes are not those the checkpoint was trained on.
    """
    cfg = absolute(cfg)
    path, folder = Path(cfg.checkpoint), Path(cfg.dir)
    content = checkpoint.read(path)
    made = from_recipe(content["recipe"], str(path))
    if cfg.data is not None:
        made.data = cfg.data
    data: Data = build(made, "data")
    known, given = list(made.class_names), data.val.class_names
    if known != given:
        raise ValueError(f"data: has the classes {given}, the checkpoint knows {known}; give data with these")
    device = chosen_device(cfg.device)
    model = load_model(made, content).to(device).eval()
    batches = val_loader(data.val, cfg.batch_size, cfg.loader_processes)
    found = scoring.detect(model, batches, data.val.category_ids, device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detections.json").write_text(json.dumps(scoring.results(found)))
    if not data.val.has_boxes:
        return {}, folder
    judgement = scoring.judge(data.val.coco, found)
    _write(judgement, data, folder)
    return judgement.numbers, folder


def chosen_device(name: str) -> torch.device:
    """`auto`: a GPU if there is one."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def load_model(made: DictConfig, content: dict[str, Any]) -> nn.Module:
    """The model of a recipe with a checkpoint's weights: their moving average, if it holds one."""
    model = build_model(made, len(made.class_names))
    weights = content["model"]
    if content["average"] is not None:
        weights = {key.removeprefix("module."): value for key, value in content["average"].items() if "." in key}
    model.load_state_dict(weights)
    return model


def _write(judgement: Judgement, data: Data, folder: Path) -> None:
    from ghm.reports import detections  # plotting takes a second to import

    (folder / "metrics.json").write_text(json.dumps(judgement.numbers, indent=2))
    detections.write(judgement, data.val.pixels, data.val.class_names, folder)
