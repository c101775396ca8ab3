"""Real photographs learnt by heart: loading, matching, the losses, training and scoring fit together."""

from pathlib import Path

import pytest

from ghm.training import checkpoint
from tests.shared import shared

SCORED_AS_TRAINED = ("data.train=train", "data.val=train", "data.allow_overlap=true", "data/augment=none")
# Anchors from a tenth of the images' side to most of it; two images a step, as the steps are what it takes.
SIZE = ("model.max_size=400", "model.anchor_sizes=[10,34,110]", "batch_size=2", "lr_batch=null", "optimizer.lr=0.002")


@pytest.mark.slow  # half an hour on two cores
def test_47_photographs_of_60_classes_are_learnt_by_heart(ghm):
    data = ("data=coco_folder", f"data.root={shared('coco_mini')}", *SCORED_AS_TRAINED)
    assert ghm("train", *data, *SIZE, "epochs=180", "threads=2", "figures=false", "dir=run") == 0
    reached = checkpoint.read(Path("run/last.pt"))["history"][-1]["metrics"]["val/AP50"]
    assert reached > 0.9
