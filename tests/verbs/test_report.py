"""What follows a sweep when there can be no report of it yet."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ghm.failure import Failed
from ghm.tracking import Spool
from ghm.verbs.report import after_sweep

CONFIG = OmegaConf.create(
    {
        "runs": "runs",
        "tracking": {"uri": None, "experiment": "ghm"},
        "hydra": {"sweep": {"dir": "runs/sweeps/s"}, "sweeper": {"study_name": "s", "direction": "maximize"}},
    }
)


@pytest.fixture
def unsent():
    """Of a sweep and its trial: what MLflow has not taken yet."""
    for folder in ("s", "s/0000"):
        Spool(Path("runs/sweeps") / folder).start("run", {})


def test_no_report_is_made_of_a_part(unsent, capsys):
    after_sweep(CONFIG, None)
    assert "the records of 2 runs wait on disk); ghm sync sends it" in capsys.readouterr().err
    assert not Path("runs/sweeps/s/report").exists()


def test_the_gaps_of_a_sweep_are_said_whatever_becomes_of_its_report(unsent):
    with pytest.raises(Failed, match="2 of 8 points are missing"):
        after_sweep(CONFIG, Failed("2 of 8 points are missing"))
