"""Ranges that files give for their own keys, which exist in the trials that choose the file and in no other."""

import math
from dataclasses import replace
from pathlib import Path

import hydra
import optuna
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode

from ghm.settings import targets
from ghm.settings.checks import check
from ghm.settings.paths import CONF
from sweeps.composer import Composer
from sweeps.conditional import widen
from sweeps.grammar import parse
from sweeps.space import Space


def widened(*words: str, nodes=("loss",), folder: Path = CONF, config: str = "train") -> Space:
    loader = ConfigLoaderImpl(create_config_search_path(str(folder)))
    master = loader.load_configuration(config, [], RunMode.MULTIRUN)
    HydraConfig.instance().set_config(master)
    return widen(parse(list(words), {}, {}, loader), list(nodes), Composer(loader, master))


def active(space: Space, trials: int = 60) -> dict[str, set[str]]:
    """By the choice made, the keys that were drawn with it."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: dict[str, set[str]] = {}
    for _ in range(trials):
        trial = study.ask()
        params = space.suggest(trial)
        assert trial.params == params
        assert drawn.setdefault(params[space.keys[0]], set(params)) == set(params)
    return drawn


def test_the_keys_of_a_loss_are_drawn_with_this_loss_alone():
    drawn = active(widened("loss/cls=focal,ghm_c,cross_entropy", nodes=["loss.cls"]))
    assert drawn == {
        "focal": {"loss/cls", "loss.cls.gamma", "loss.cls.alpha", "loss.cls.weight"},
        "ghm_c": {"loss/cls", "loss.cls.bins", "loss.cls.momentum", "loss.cls.strength", "loss.cls.weight"},
        "cross_entropy": {"loss/cls", "loss.cls.weight"},
    }


def test_a_preset_brings_the_ranges_of_the_losses_that_it_chooses():
    drawn = active(widened("loss=focal,ghm"))
    assert {"loss.cls.gamma", "loss.box.delta"} <= drawn["focal"]
    assert {"loss.cls.bins", "loss.box.mu", "loss.box.bins"} <= drawn["ghm"]
    assert not {"loss.cls.gamma", "loss.box.delta"} & drawn["ghm"]


def test_a_file_keeps_the_ranges_of_the_one_it_extends_except_those_it_takes_back():
    drawn = active(widened("loss/cls=ohem,ohem_lin,ghm_c_paper", nodes=["loss.cls"]))
    assert drawn["ohem"] == {"loss/cls", "loss.cls.ratio", "loss.cls.weight"}
    assert drawn["ohem_lin"] == {"loss/cls", "loss.cls.keep", "loss.cls.weight"}
    assert "loss.cls.bins" in drawn["ghm_c_paper"]


def test_what_is_said_of_a_key_counts_and_a_range_that_always_holds_has_no_condition():
    space = widened("loss=focal,ghm", "loss.cls.weight=2", "optimizer.lr=0.01,0.02", nodes=["loss.cls", "optimizer"])
    conditions = {one.key: str(one.condition or "") for one in space.dimensions}
    assert "loss.cls.weight" not in conditions
    assert conditions["optimizer.lr"] == conditions["optimizer.weight_decay"] == ""
    assert conditions["loss.cls.gamma"] == "loss=focal"
    assert "weight=2" in " ".join(space.overrides({"loss": "focal", "optimizer.lr": 0.01}))


def test_only_choices_that_matter_are_in_a_condition():
    space = widened("loss=focal,ghm", "optimizer=adamw,sgd", "model=retinanet_tiny,retinanet_r50", "seed=0,1")
    assert {str(one.condition) for one in space.dimensions if one.key == "loss.cls.gamma"} == {"loss=focal"}
    assert len(space.probes()) < 60


def test_every_range_in_conf_composes_at_both_ends():
    setup_globals()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    master = loader.load_configuration("train", [], RunMode.MULTIRUN)
    HydraConfig.instance().set_config(master)
    composer = Composer(loader, master)
    losses = "cross_entropy,focal,ghm,ghm_c,ghm_r,ghm_paper,ghm_mmdet,ohem,ohem_lin"
    space = widen(parse([f"loss={losses}", "optimizer=adamw,sgd"], {}, {}, loader), ["loss", "optimizer"], composer)
    for probe in space.probes():
        check(composer.compose(space.overrides(probe)))


def test_a_node_without_ranges_is_named():
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.search: model: no file that is chosen gives a range there"):
        widened("loss=focal,ghm", nodes=["loss", "model"])


@pytest.fixture
def app(tmp_path):
    """A config of its own, with a group `shape` of two files."""

    def made(one: str, other: str) -> Path:
        (tmp_path / "shape").mkdir()
        (tmp_path / "app.yaml").write_text("defaults:\n  - shape: one\n  - _self_\n")
        for name, text in (("one", one), ("other", other)):
            (tmp_path / "shape" / f"{name}.yaml").write_text(f"size: 1\n_search_:\n  {text}\n")
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("size: choice(1,2)", "size: choice(3,4)", "has other choices under shape=other than under shape=one"),
        ("size: choice(1,2)", "size: interval(0,1)", "has other choices"),
        ("size: 3", "size: interval(0,1)", "_search_ says 3, which sweeps nothing"),
        ("size: 'interval(1'", "size: interval(0,1)", r"_search_ says interval\(1, which is no sweep"),
    ],
)
def test_ranges_that_cannot_be_searched_are_refused(app, one, other, said):
    with pytest.raises(ValueError, match=f"shape.size: .*{said}"):
        widened("shape=one,other", nodes=["shape"], folder=app(one, other), config="app")


def test_one_key_may_have_other_numbers_under_each_choice(app):
    space = widened(
        "shape=one,other", nodes=["shape"], folder=app("size: range(0,3)", "size: range(10,12)"), config="app"
    )
    points = space.points(most=10)
    assert [(point["shape"], point["shape.size"]) for point in points] == [
        *(("one", size) for size in range(3)),
        *(("other", size) for size in (10, 11)),
    ]
    assert space.overrides({"shape": "other", "shape.size": 11}) == ["shape=other", "shape.size=11"]


# Four shapes, each with two numbers of its own, whose best values differ.
BEST = {"a": (0.1, 0.9), "b": (0.9, 0.2), "c": (0.5, 0.5), "d": (0.3, 0.7)}
FLOOR = {"a": 0.0, "b": 0.15, "c": 0.3, "d": 0.45}


def reached(space: Space, seed: int, trials: int = 50) -> float:
    """The smallest value that the default sampler finds in a space."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"seed={seed}"], return_hydra_config=True)
    study = optuna.create_study(sampler=targets.call(cfg.hydra.sweeper.sampler, seed=seed))
    for _ in range(trials):
        trial = study.ask()
        params = space.suggest(trial)
        name = params["shape"]
        size = params[f"shape.{name}x"], params[f"shape.{name}y"]
        study.tell(trial, FLOOR[name] + math.dist(size, BEST[name]))
    return study.best_value


def test_tpe_gets_further_in_the_conditional_space_than_in_the_flattened_one(tmp_path):
    (tmp_path / "shape").mkdir()
    (tmp_path / "app.yaml").write_text("defaults:\n  - shape: a\n")
    for name in BEST:
        ranges = f"{{{name}x: 'interval(0,1)', {name}y: 'interval(0,1)'}}"
        (tmp_path / "shape" / f"{name}.yaml").write_text(f"_search_: {ranges}\n")
    conditional = widened("shape=a,b,c,d", nodes=["shape"], folder=tmp_path, config="app")
    flattened = replace(conditional, dimensions=[replace(one, condition=None) for one in conditional.dimensions])
    assert len(conditional.dimensions) == len(flattened.dimensions) == 9
    wins = sum(reached(conditional, seed) < reached(flattened, seed) for seed in range(10))
    assert wins >= 7, wins
