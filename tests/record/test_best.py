"""The best trial of a sweep as a file: composed with it, a training has the settings that the trial had."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ghm.job import Job
from ghm.record import best
from ghm.settings import choices, own_ranges
from ghm.settings.paths import plain
from ghm.verbs import composed

COMMANDS = [
    [],
    ["loss=focal", "optimizer.lr=0.01", "loss.cls.gamma=1.5"],
    ["loss=ghm_c", "loss/box=asl1", "loss.prior=null", "strength_warmup=600", "accumulate=2", "loss.box.mu=0.1"],
    ["+sweep=table4", "+scale=small", "loss=ohem_lin", "data.train_images=64"],
    ["+experiment=paper", "data.root=folder", "model.weights=null", "batch_size=8"],
    ["data=coco_folder", "data.root=folder", "data/augment=none", "model=faster_rcnn_tiny", "loss=two_stage"],
    ["loss=stock", "model=stock_faster_rcnn_r50", "model.score_thresh=0.1", "ema=0.99", "+mine=1"],
]


def settings(overrides):
    """Resolved config and settings of a command."""
    cfg = composed.training(["runs=r", "dir=d", *overrides])
    OmegaConf.set_struct(cfg, False)
    cfg.cwd = "/somewhere"
    composed.HydraConfig.instance().set_config(cfg)
    choices.note(cfg)
    cfg.pop("hydra")
    own_ranges.take(cfg)
    made = plain(cfg)
    return made, Job.of_plain(made).settings


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "defaults")
def test_a_training_composed_with_it_has_the_settings_of_the_trial(command):
    made, expected = settings([*command, "seed=3"])
    best.write(made, (), composed.training, "Of the sweep one.\nTwo lines.", Path("conf/best/one.yaml"))
    _, got = settings(["hydra.searchpath=[file://conf]", "+best=one", "seed=3"])
    assert got.flat() == expected.flat()
    text = Path("conf/best/one.yaml").read_text()
    assert text.startswith("# @package _global_\n# Of the sweep one.\n# Two lines.\n")
    assert "seed" not in text


def test_it_says_which_files_and_what_differs_or_was_swept_and_no_secret():
    made, _ = settings(["loss=focal", "loss.cls.gamma=1.5", "loss.box.weight=4", "tracking.uri=http://me:hunter2@host"])
    best.write(made, ["optimizer.lr", "seed", "model"], composed.training, "One.", Path("best/one.yaml"))
    written = OmegaConf.to_container(OmegaConf.load("best/one.yaml"))
    assert {"override /loss": "focal"} in written["defaults"]
    assert {"override /model": "retinanet_tiny"} in written["defaults"]
    written.pop("defaults")
    assert written == {"loss": {"cls": {"gamma": 1.5}}, "optimizer": {"lr": 0.003}}
    assert "hunter2" not in Path("best/one.yaml").read_text()


def test_what_is_given_beside_it_comes_first():
    made, _ = settings(["loss=focal", "loss.cls.gamma=1.5", "optimizer=sgd"])
    best.write(made, (), composed.training, "One.", Path("conf/best/one.yaml"))
    _, got = settings(["hydra.searchpath=[file://conf]", "+best=one", "loss.cls.gamma=2.5", "optimizer=adamw"])
    assert (got.parts["loss"]["cls"]["gamma"], got.parts["optimizer"]["lr"]) == (2.5, 0.003)
