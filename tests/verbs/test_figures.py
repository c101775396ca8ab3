"""`ghm figures`: the paper's figures of a run, whatever it was trained with."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ghm.training import checkpoint

CLASSES = {"figure1", "figure2", "figure2_classes", "figure2_levels", "figure3"}
BOXES = {"figure4", "figure5"}
SMALL = ("epochs=1", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4", "figures=false")


def drawn(folder):
    """Names of the figures of a folder that stand there as PNG, with something on it, and as PDF."""
    names = {path.stem for path in folder.iterdir() if path.suffix in (".png", ".pdf")}
    for name in names:
        colors = Image.open(folder / f"{name}.png").convert("RGB").getcolors(2**24)
        assert len(colors) > 20, name
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    return names


@pytest.mark.parametrize("given", ["folder", "checkpoint"])
def test_all_are_drawn_of_a_run_from_its_folder_or_a_checkpoint(trained, ghm, capsys, given):
    run = trained if given == "folder" else trained / "last.pt"
    before = checkpoint.read(trained / "last.pt")["model"]
    assert ghm("figures", str(run), "dir=out", "images=4", "split=val") == 0
    assert drawn(Path("out")) == CLASSES | BOXES | {"figure4_levels"}
    said = capsys.readouterr().out.splitlines()
    assert {Path(line).stem for line in said} == CLASSES | BOXES | {"figure4_levels"}
    assert all(Path(line).exists() for line in said)
    torch.testing.assert_close(checkpoint.read(trained / "last.pt")["model"], before, rtol=0, atol=0)


def test_a_two_stage_detector_has_the_figures_of_its_boxes(ghm):
    assert ghm("train", "model=faster_rcnn_tiny", "loss=two_stage", "loss/box=ghm_r_paper", *SMALL, "dir=run") == 0
    assert ghm("figures", "run", "dir=out", "images=4") == 0
    assert drawn(Path("out")) == BOXES


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty"], "empty: holds no checkpoint; give the folder of a finished run, or a checkpoint"),
        (["none.pt"], "none.pt"),
        (["RUN", "split=test"], "split=test: must be train or val"),
        (["RUN", "images=0"], "images=0: must be a whole number of at least 1"),
        ([], "run=null: names no run"),
    ],
)
def test_what_cannot_be_drawn_is_named(trained, ghm, capsys, words, said):
    Path("empty").mkdir()
    assert ghm("figures", *(word.replace("RUN", str(trained)) for word in words)) == 2
    assert said in capsys.readouterr().err
