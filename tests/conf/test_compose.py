"""Every config file composes, and everything it names can be built."""

import itertools
from contextlib import nullcontext
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import get_class
from hydra_plugins.ghm_sweeper.config import FOLDER
from omegaconf import OmegaConf

from ghm.losses import MMDET
from ghm.settings import own_ranges, targets
from ghm.settings.parts import build, build_model, build_optimizer
from ghm.settings.paths import CONF
from sweeps.draw import Search
from sweeps.grammar import parse
from tests.models.scenes import batch
from tests.sweeps.toy import LOADER

SWEPT = {"loss.cls.bins": "loss=ghm", "loss.cls.momentum": "loss=ghm", "loss.cls.strength": "loss=ghm"}
SWEPT |= {"loss.box.mu": "loss=ghm", "loss.cls.gamma": "loss=focal", "loss.cls.alpha": "loss=focal"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, full: bool = False):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=full)
    own_ranges.take(cfg)
    return cfg


@pytest.mark.parametrize("loss", options("loss"))
def test_a_loss_preset_trains_every_model_that_it_fits_and_the_others_say_what_does(loss):
    for model in options("model"):
        fetched = ("model.weights=null",) if model.endswith("_imagenet") else ()
        cfg = compose(f"loss={loss}", f"model={model}", *fetched)
        fits = (loss == "stock") == model.startswith("stock")
        fits &= loss not in (("ghm_mmdet", "cross_entropy_paper") if model.startswith("faster") else ("two_stage",))
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


LETTER = {"strength": 1.0, "matched": False, "density": "regions", "counts": "world", "max_weight": None}
EXPERIMENTS = {
    # docs/paper.md says where each stands.
    "paper": {
        "epochs": 14,
        "schedule.milestones": [9, 12],
        "clip_grad": None,
        "strength_warmup": 0,
        "loss.prior": None,
        "loss.cls.bins": 30,
        "loss.cls.momentum": 0.75,
        "loss.cls.normalize": "all",
        "loss.cls.weight": 1.0,
        "loss.cls.bias_correction": False,
        "loss.cls.emptied": "decay",
        "loss.cls.scope": "pooled",
        "loss.box.mu": 0.02,
        "loss.box.momentum": 0.75,
        "loss.box.normalize": "all",
        "loss.box.weight": 1.0,
        "loss.box.bias_correction": False,
        "data.augment.p": 0.5,
    },
    # mmdetection's retinanet_ghm-r50_fpn_1x_coco.
    "authors": {
        "epochs": 12,
        "schedule.milestones": [8, 11],
        "clip_grad": 35.0,
        "schedule.warmup_steps": 500,
        "loss.prior": 0.01,
        "model.train_padding": False,
        "data.empty": "drop",
        "loss.cls.scope": "shared",
        "loss.cls.normalize": "occupied",
        "loss.box.momentum": 0.7,
        "loss.box.weight": 10.0,
    },
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
    assert settings.params
    search = Search(parse([], settings.params, settings.when, LOADER), None, None)
    assert not search.left_out(settings.n_trials)


TABLES = sorted((CONF / "sweep").glob("table*.yaml"))


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
@pytest.mark.parametrize("scale", [(), ("+scale=small",)], ids=["full", "small"])
def test_every_training_of_a_table_can_be_built(file: Path, scale):
    """The paper's network and losses, and at small scale those that fit a laptop."""
    params = compose(f"+sweep={file.stem}", *scale, full=True).hydra.sweeper.params
    assert params.seed == "range(3)"
    choices = {key: sweep.removeprefix("choice(").removesuffix(")").split(",") for key, sweep in params.items()}
    for point in itertools.product(*([f"{key}={value}" for value in choices[key]] for key in choices if key != "seed")):
        cfg = compose(f"+sweep={file.stem}", *scale, *point, *(() if scale else ("model.weights=null",)))
        with torch.device("meta"):
            built = build_model(cfg, num_classes=4)
        assert (sum(parameter.numel() for parameter in built.parameters()) < 1e6) == bool(scale)
        assert cfg.strength_warmup == 0


def test_a_table_is_a_sweep_of_its_own_at_each_scale():
    def name(*overrides):
        return compose(*overrides, full=True).hydra.sweeper.study_name

    assert name("+sweep=table5") == "table5_coco2017"
    assert name("+sweep=table6") == "table6_coco2017"  # its trainings are Table 5's, but a study knows its command
    assert name("+sweep=table5", "+scale=small") == "table5_shapes"


def test_the_table_of_seconds_trains_one_at_a_time_and_counts_no_run_that_was_trained_beside_others():
    sweeper = compose("+sweep=table2", full=True).hydra.sweeper
    assert (sweeper.n_jobs, sweeper.reuse) == (1, False)


@pytest.mark.parametrize("name", options("sweep/known"))
def test_settings_that_are_known_to_be_good_are_settings(name):
    """Each of them composes with its loss, and several can be asked for at once."""
    others = [other for other in options("sweep/known") if other != name]
    both = compose(f"+sweep/known=[{name},{others[0]}]", full=True)
    assert both.hydra.sweeper.known.keys() == {name, others[0]}
    for settings in both.hydra.sweeper.known[name]:
        cfg = compose(*(f"{key}={value}" for key, value in settings.items()))
        assert cfg.loss.cls is not None


@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_every_sampler_and_pruner_can_be_built(kind):
    for option in sorted(path.stem for path in (FOLDER / kind).glob("*.yaml")):
        settings = OmegaConf.load(FOLDER / kind / f"{option}.yaml")
        assert type(targets.call(settings)) is get_class(settings._target_)


@pytest.mark.parametrize(("key", "preset"), SWEPT.items())
def test_the_keys_that_sweeps_rely_on_exist(key, preset):
    assert OmegaConf.select(compose(preset), key) is not None


def test_the_warm_up_of_ghm_begins_as_the_cross_entropy_baseline():
    """With its weight and its prior: the first step of both is the same, to rounding."""

    def first_step(loss):
        cfg = compose(f"loss={loss}", "loss/box=smooth_l1")
        torch.manual_seed(0)
        model = build_model(cfg, num_classes=3).train()
        losses = model(*batch())
        losses["loss_cls"].backward()
        return losses["loss_cls"], [part.grad for part in model.parameters() if part.grad is not None]

    torch.testing.assert_close(first_step("ghm"), first_step("cross_entropy"))


@pytest.mark.parametrize("key", ["cls", "box"])
def test_the_mmdetection_presets_say_what_its_options_say(key):
    settings, plain = (compose(f"loss={preset}").loss[key] for preset in ("ghm_mmdet", "ghm"))
    assert {name: settings[name] for name in MMDET} == MMDET
    assert (settings.strength, settings.strength_warmup, settings.matched) == (1.0, 0, False)
    assert settings.keys() == plain.keys()


def test_only_targets_of_known_packages_are_named():
    for file in CONF.rglob("*.yaml"):
        for line in file.read_text().splitlines():
            if line.strip().startswith("_target_:"):
                known = ("ghm.", "torch.", "torchvision.", "optuna.", "hydra_plugins.")
                assert line.split(":")[1].strip().startswith(known), file
