"""What makes two runs the same, and what a folder's run may be continued with."""

import pickle
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from ghm.job import Job
from ghm.record.resume import refuse_other
from ghm.settings import own_ranges
from ghm.settings.paths import CONF, absolute


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", ["cwd=.", "dir=run", *overrides])
    own_ranges.take(cfg)
    return absolute(cfg)


def job(*overrides: str) -> Job:
    return Job.of(composed(*overrides))


def test_a_job_can_be_sent_to_another_process():
    one = job("loss=focal", "trial.trial=3", "trial.name=s")
    assert pickle.loads(pickle.dumps(one)) == one
    assert (one.key.sweep, one.key.trial, one.key.seed, one.key.attempt) == ("s", 3, 0, 1)
    assert one.place.folder == Path("run").resolve()


@pytest.mark.parametrize(
    "overrides",
    [
        ["dir=elsewhere", "keep=9", "figures=false"],
        ["scaling=workers", "scaling.num_workers=4"],
        ["trial.trial=7", "tracking.experiment=other", "loader_processes=2"],
        ["optimizer.lr=2e-3", "epochs=14"],
        ["epochs=14.0", "optimizer.lr=0.002"],
    ],
)
def test_equal_numbers_have_one_fingerprint(overrides):
    plain = job("optimizer.lr=0.002", "epochs=14") if "epochs" in str(overrides) else job()
    assert job(*overrides).settings.fingerprint == plain.settings.fingerprint


@pytest.mark.parametrize("change", ["seed=1", "threads=2", "loss.cls.bins=31", "batch_size=4", "+note=x", "amp=bf16"])
def test_what_decides_numbers_changes_the_fingerprint(change):
    assert job(change).settings.fingerprint != job().settings.fingerprint


def test_more_epochs_go_on_where_the_learning_rate_of_those_done_stays():
    before = job("schedule=paper", "epochs=20").settings.flat()
    refuse_other(job("schedule=paper", "epochs=30"), before)
    with pytest.raises(ValueError, match=r"holds a run with seed=0, not 1; give another dir"):
        refuse_other(job("schedule=paper", "epochs=30", "seed=1"), before)


def test_more_epochs_under_one_cycle_are_refused_with_the_remedy():
    before = job("schedule=one_cycle", "epochs=4").settings.flat()
    with pytest.raises(ValueError, match=r"run of epochs=4, .* give epochs=4 to go on, or another dir for epochs=8"):
        refuse_other(job("schedule=one_cycle", "epochs=8"), before)


@pytest.mark.parametrize("change", ["threads=2", "loss.cls.emptied=stay", "loss.cls.max_weight=9"])
def test_a_key_that_a_newer_version_adds_strands_nobody_at_its_default(change):
    before = job().settings.flat()
    del before[change.split("=")[0]]
    refuse_other(job(), before)
    with pytest.raises(ValueError, match=f"holds a run with {change.split('=')[0]}=None, not"):
        refuse_other(job(change), before, given=[change.split("=")[0]])


def test_where_a_run_of_an_older_version_was_kept_does_not_matter():
    refuse_other(job(), job().settings.flat() | {"keep": 5, "scaling.num_workers": 4, "figures": True})


def test_a_setting_that_is_gone_is_another_run():
    with pytest.raises(ValueError, match=r"holds a run with loss\.cls\.other=1, not None"):
        refuse_other(job(), job().settings.flat() | {"loss.cls.other": 1})
