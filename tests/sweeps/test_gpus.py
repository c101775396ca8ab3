"""Each trial sees the GPUs that are its own; those of these tests are pretended, as Ray counts what it is told."""

from collections import Counter
from pathlib import Path

import hydra
import pytest

from ghm.job import Job
from ghm.remote.group import fit
from ghm.settings import own_ranges
from ghm.settings.paths import CONF, absolute
from sweeps.slots import Resources
from tests.sweeps.tasks import visible_gpus
from tests.sweeps.test_launch import sweep

pytestmark = pytest.mark.usefixtures("cluster")


def seen() -> Counter[str]:
    return Counter(path.read_text() for path in Path("runs/sweeps/toy").glob("*/gpus"))


@pytest.mark.parametrize(("gpus", "jobs", "expected"), [(1, 2, {"0": 1, "1": 1}), (0.5, 4, {"0": 2, "1": 2})])
def test_a_trial_sees_only_its_own(gpus, jobs, expected):
    sweep(f"x=range(1,{jobs + 1})", n_jobs=jobs, n_trials=jobs, resources=Resources(0.5, gpus), seconds=3)
    assert seen() == expected


def test_more_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"n_jobs=5: 5 times 0\.5 GPU do not fit the 2 of this Ray cluster"):
        sweep(n_jobs=5, resources=Resources(0, 0.5))


def test_trials_that_share_one_are_told_so(caplog):
    sweep("x=range(1,3)", n_trials=2, n_jobs=2)
    assert "2 trials at a time share the first of 2 GPUs; scaling.slot.gpus=1" in caplog.text
    assert seen() == {"all": 2}


def test_workers_of_a_trial_have_one_each_and_talk_over_gloo_where_they_train_on_processors():
    words = ["cwd=.", "dir=run", "device=cpu", "scaling=workers", "scaling.gpus=1", "scaling.cpus=0.5"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", words)
    own_ranges.take(cfg)
    job = Job.of(absolute(cfg))
    found = fit(visible_gpus, job)
    assert found["backend"] == "gloo"
    assert sorted(own for _, [own] in found["seen"]) in ([0, 1], ["0", "1"])
    assert {where for where, _ in found["seen"]} == {"0,1"}  # Ray Train shows a group all that it has
