"""A trial's config is the one that Hydra itself would compose."""

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from ghm.settings import own_ranges
from ghm.settings.paths import CONF
from sweeps.composer import Composer


def loader(folder=CONF):
    return ConfigLoaderImpl(create_config_search_path(str(folder)))


def master(own):
    cfg = own.load_configuration("train", ["+sweep=demo", "seed=3"], RunMode.MULTIRUN)
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=4"],
        ["loss=focal", "loss.cls.gamma=1.5"],
        ["loss=focal", "loss/box=ghm_r", "loss.box.mu=0.05", "+extra={a: 1}"],
        ["~clip_grad", "optimizer.lr=0.001", "++seed=9"],
        ["loss=ghm", "loss.cls.bins=7", "epochs=${seed}"],
    ],
)
def test_what_is_set_in_a_copy_is_what_hydra_composes(overrides):
    own = loader()
    overrides = ["+sweep=demo", *overrides]
    whole = own.load_sweep_config(master(own), overrides)
    OmegaConf.set_struct(whole, False)
    whole.pop("hydra")
    own_ranges.take(whole)
    composer = Composer(own, master(own))
    composer.compose(["+sweep=demo", "loss=cross_entropy", "seed=8"])  # leaves nothing in those that follow
    for _ in range(2):
        composed = composer.compose(overrides)
        assert OmegaConf.to_container(composed, resolve=False) == OmegaConf.to_container(whole, resolve=False)


def test_an_unknown_key_is_refused_as_hydra_refuses_it():
    own = loader()
    with pytest.raises(ConfigCompositionException, match="'nonsense'"):
        Composer(own, master(own)).compose(["+sweep=demo", "nonsense=1"])


def test_a_file_that_is_edited_meanwhile_changes_no_later_trial(tmp_path):
    (tmp_path / "loss").mkdir()
    for name, value in (("one", 1), ("two", 2)):
        Path(tmp_path, "loss", f"{name}.yaml").write_text(f"value: {value}\n")
    Path(tmp_path, "train.yaml").write_text("defaults:\n  - loss: one\n  - _self_\nseed: 0\n")
    own = loader(tmp_path)
    cfg = own.load_configuration("train", [], RunMode.MULTIRUN)
    HydraConfig.instance().set_config(cfg)
    composer = Composer(own, cfg)
    composer.compose(["loss=two"])
    Path(tmp_path, "loss", "two.yaml").write_text("value: 3\n")
    assert composer.compose(["loss=two", "seed=1"]).loss.value == 2
