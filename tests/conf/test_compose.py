"""Every config file composes, and everything it names can be built."""

from contextlib import nullcontext
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from ghm.losses import MMDET
from ghm.parts import build, build_model, build_optimizer
from ghm.paths import CONF

SWEPT = {"loss.cls.bins": "loss=ghm", "loss.cls.momentum": "loss=ghm", "loss.cls.strength": "loss=ghm"}
SWEPT |= {"loss.box.mu": "loss=ghm", "loss.cls.gamma": "loss=focal", "loss.cls.alpha": "loss=focal"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, full: bool = False):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", list(overrides), return_hydra_config=full)


@pytest.mark.parametrize("loss", options("loss"))
def test_a_loss_preset_trains_every_model_that_it_fits_and_the_others_say_what_does(loss):
    for model in options("model"):
        cfg = compose(f"loss={loss}", f"model={model}")
        fits = (loss == "stock") == model.startswith("stock")
        fits &= loss != ("ghm_mmdet" if model.startswith("faster") else "two_stage")
        refusal = pytest.raises(ValueError, match=r"^loss.*(choose|add|set) ")
        with torch.device("meta"), nullcontext() if fits else refusal:
            build_model(cfg, num_classes=3)


@pytest.mark.parametrize("name", options("schedule"))
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_schedule_steps_every_optimizer(name, optimizer):
    cfg = compose(f"schedule={name}", f"optimizer={optimizer}")
    scheduler = build(cfg, "schedule", build_optimizer(cfg, torch.nn.Linear(1, 1)), cfg.epochs, steps_per_epoch=2)
    scheduler.optimizer.step()
    scheduler.step()


@pytest.mark.parametrize(
    ("batch_size", "lr_batch", "expected"), [(16, 16, 0.01), (8, 16, 0.005), (64, 16, 0.04), (64, "null", 0.01)]
)
def test_the_rate_is_scaled_to_the_images_of_a_step(batch_size, lr_batch, expected):
    cfg = compose("optimizer=sgd", f"batch_size={batch_size}", f"lr_batch={lr_batch}")
    [group] = build_optimizer(cfg, torch.nn.Linear(1, 1)).param_groups
    assert group["lr"] == pytest.approx(expected)


EXPERIMENTS = {
    # The paper, section 4.1; and mmdetection's retinanet_ghm-r50_fpn_1x_coco.
    "paper": {"epochs": 14, "schedule.milestones": [9, 12], "clip_grad": None, "strength_warmup": 0},
    "mmdet_1x": {"epochs": 12, "schedule.milestones": [8, 11], "clip_grad": 35.0, "schedule.warmup_steps": 500},
}


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_opens_with_what_it_reproduces_and_has_its_numbers(file: Path):
    for word in ("Reproduces:", "Command:", f"ghm train +experiment={file.stem}", "Expected:", "Time:"):
        assert word in file.read_text()
    cfg = compose(f"+experiment={file.stem}", "data.root=PATH")
    common = {"optimizer.lr": 0.01, "optimizer.momentum": 0.9, "optimizer.weight_decay": 1e-4, "batch_size": 16}
    common |= {"lr_batch": 16, "model.min_size": 800, "model.weights": "IMAGENET1K_V1", "data.train": "train2017"}
    common |= {"schedule.gamma": 0.1, "loss.cls.strength_warmup": 0, "loss.box.strength_warmup": 0}
    for key, value in (common | EXPERIMENTS[file.stem]).items():
        assert OmegaConf.select(cfg, key) == value, key


@pytest.mark.parametrize(
    "group", ["loss/cls", "loss/box", "optimizer", "schedule", "scaling", "tracking", "data", "data/augment"]
)
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
                known = ("ghm.", "torch.", "torchvision.", "optuna.", "hydra_plugins.")
                assert line.split(":")[1].strip().startswith(known), file
