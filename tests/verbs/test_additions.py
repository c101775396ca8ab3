"""A loss, a model, a sampler and a study of one's own: each two or three files in a folder, and no list to edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient

FILES = {
    "mine.py": '''
        import optuna
        import torch
        from ghm.models import retinanet_tiny
        from torch import nn
        from torch.nn.functional import binary_cross_entropy_with_logits


        class Halved(nn.Module):
            """Cross-entropy, halved."""

            def __init__(self, weight=1.0):
                super().__init__()
                self.weight = weight

            def forward(self, input, target, valid=None, sizes=None):
                loss = binary_cross_entropy_with_logits(input, target, reduction="none")
                return self.weight * 0.5 * (loss if valid is None else loss * valid).mean()


        class First(optuna.samplers.RandomSampler):
            """Draws the smallest value of everything."""

            def sample_independent(self, study, trial, name, distribution):
                return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


        def narrow(**settings):
            return retinanet_tiny(**settings)
        ''',
    "conf/loss/cls/halved.yaml": """
        _target_: mine.Halved
        weight: 10.0
        _search_:
          weight: interval(1.0,20.0)
        """,
    "conf/model/narrow.yaml": """
        defaults:
          - retinanet_tiny
          - _self_
        _target_: mine.narrow
        """,
    "conf/hydra/sweeper/sampler/first.yaml": """
        _target_: mine.First
        seed: null
        """,
    "conf/sweep/mine.yaml": """
        # @package _global_
        defaults:
          - override /loss/cls: halved
          - override /model: narrow
          - override /hydra/sweeper/sampler: first
        hydra:
          sweeper:
            study_name: mine
            n_trials: 2
            search: [loss.cls]
            params:
              seed: range(3,9)
        """,
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "additions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines).rstrip() + "\n")
    return tmp_path / "additions"


def test_one_of_each_is_added_from_a_folder(folder, cluster):
    small = ["epochs=1", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4"]
    words = ["train", "-m", "--config-dir", str(folder / "conf"), "+sweep=mine", *small, "figures=false", "device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(folder), "RAY_ADDRESS": cluster}
    ended = subprocess.run(
        [Path(sys.executable).parent / "ghm", *words], env=environment, capture_output=True, text=True
    )
    assert ended.returncode in (0, 1), ended.stderr  # so short a training may have learned nothing
    trials = optuna.load_study(study_name="mine", storage="sqlite:///runs/optuna.db").trials
    assert trials[0].params == {"seed": 3, "loss.cls.weight": 1.0}
    client = MlflowClient("sqlite:///runs/mlflow.db")
    runs = client.search_runs(["1"], "tags.`sweep.trial` = '0'")
    assert runs[0].data.params["loss/cls"] == "halved", json.dumps(runs[0].data.params)
    assert runs[0].data.params["model"] == "narrow"
