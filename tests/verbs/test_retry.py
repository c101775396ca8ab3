"""`ghm retry`: failed trials wait for their sweep again, and nothing else changes."""

from pathlib import Path

import pytest

from ghm.tracking import Spool
from sweeps import studies
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.states import State
from sweeps.storage import open_storage
from tests.sweeps.toy import with_failures


@pytest.fixture
def sweep():
    """Three trials, of which the second and third failed; its ledger as it is now."""
    with_failures("s", 3)
    return lambda: Ledger(studies.find(open_storage(None, Path("runs")), "s"))


def test_all_failed_trials_or_those_that_are_named_are_queued(sweep, ghm, capsys):
    assert ghm("retry", "s", "2") == 0
    assert capsys.readouterr().out == "Queued again: trial 2 (seed=2). The sweep's own command runs them\n"
    assert [trial.state for trial in sweep().trials] == [State.DONE, State.FAILED, State.QUEUED]
    assert Spool(Path("runs/sweeps/s/0002")).state() == State.QUEUED
    assert ghm("retry", "s") == 0
    assert [trial.state for trial in sweep().trials] == [State.DONE, State.QUEUED, State.QUEUED]
    assert ghm("retry", "s") == 0
    assert capsys.readouterr().out.endswith("Nothing to queue: no trial of s has failed\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "names no sweep; write ghm retry NAME"),
        (["t"], "t: the study's storage holds no sweep of this name"),
        (["s", "0"], "0: is no failed trial of s; failed are 1, 2"),
        (["s", "x"], "x: is no number of a trial"),
        (["s", "hydra.sweeper.storage=nowhere://x"], "hydra.sweeper.storage=nowhere://x: cannot be opened"),
    ],
)
def test_what_cannot_be_queued_is_one_line(sweep, ghm, capsys, words, said):
    assert ghm("retry", *words) == 2
    assert said in capsys.readouterr().err
    assert [trial.state for trial in sweep().trials] == [State.DONE, State.FAILED, State.FAILED]


def test_a_sweep_that_runs_is_left_alone(sweep, ghm, capsys):
    storage = open_storage(None, Path("runs"))
    with Lease(storage, studies.find(storage, "s")._study_id, "s", 1):
        assert ghm("retry", "s", "hydra.sweeper.lease=1") == 2
    assert "is run by process" in capsys.readouterr().err
    assert sweep().count(State.FAILED) == 2
