"""Every config file composes, and everything it names can be built."""

from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from ghm.cli import CONF
from ghm.losses import MMDET
from ghm.parts import build, build_model

SWEPT = {"loss.cls.bins": "loss=ghm", "loss.cls.momentum": "loss=ghm", "loss.cls.strength": "loss=ghm"}
SWEPT |= {"loss.box.mu": "loss=ghm", "loss.cls.gamma": "loss=focal", "loss.cls.alpha": "loss=focal"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, full: bool = False):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides), return_hydra_config=full)


@pytest.mark.parametrize("loss", options("loss"))
def test_every_loss_preset_trains_every_model(loss):
    for model in options("model"):
        cfg = compose(f"loss={loss}", f"model={model}")
        with torch.device("meta"):
            built = build_model(cfg, num_classes=3)
            optimizer = build(cfg, "optimizer", built.parameters())
            build(cfg, "schedule", optimizer, cfg.epochs, steps_per_epoch=2)


@pytest.mark.parametrize("group", ["loss/cls", "loss/box", "optimizer", "schedule", "scaling", "tracking", "data"])
def test_every_option_of_a_group_composes(group, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost")
    for option in options(group):
        assert compose(f"{group}={option}")


@pytest.mark.parametrize("file", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_sweep_opens_with_what_it_answers_and_composes(file: Path):
    head = file.read_text().split("\nhydra:")[0]
    for word in ("Reproduces:", "Command:", f"ghm train -m +sweep={file.stem}", "Expected:", "Time:"):
        assert word in head
    settings = compose(f"+sweep={file.stem}", full=True).hydra.sweeper
    assert settings.n_trials >= 1
    assert settings.params


@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_every_sampler_and_pruner_can_be_built(kind):
    for option in options(f"hydra/sweeper/{kind}"):
        settings = compose(f"hydra/sweeper/{kind}={option}", full=True).hydra.sweeper[kind]
        assert type(instantiate(settings)) is get_class(settings._target_)


@pytest.mark.parametrize(("key", "preset"), SWEPT.items())
def test_the_keys_that_sweeps_rely_on_exist(key, preset):
    assert OmegaConf.select(compose(preset), key) is not None


@pytest.mark.parametrize("key", ["cls", "box"])
def test_the_mmdetection_presets_say_what_its_options_say(key):
    settings, plain = (compose(f"loss={preset}").loss[key] for preset in ("ghm_mmdet", "ghm"))
    assert {name: settings[name] for name in MMDET} == MMDET
    assert settings.strength_warmup == 0
    assert settings.keys() == plain.keys()


def test_only_targets_of_known_packages_are_named():
    for file in CONF.rglob("*.yaml"):
        for line in file.read_text().splitlines():
            if line.strip().startswith("_target_:"):
                assert line.split(":")[1].strip().startswith(("ghm.", "torch.", "optuna.", "hydra_plugins.")), file
