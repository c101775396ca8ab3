"""What a sweep says in a log."""

import io

import pytest
from rich.console import Console

from sweeps import view
from sweeps.goal import Goal
from sweeps.view import View


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the sweep began, to be set."""
    now = [0.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    return now


def test_a_long_silence_is_broken_by_the_epochs_of_what_runs(clock):
    log = io.StringIO()
    with View(
        "s", Goal(("val/AP",), ("maximize",)), 4, console=Console(file=log, width=200), left=4, _begun=0.0, _said=0.0
    ) as shown:
        shown.started(0, "loss=ghm")
        shown.started(1, "loss=focal")
        for epoch in (1, 2, 3):
            clock[0] += 25
            shown.reported(0, epoch, 10, 0.1)
        shown.reported(0, 4, 10, 0.1)
    assert log.getvalue().splitlines()[2:] == ["  trial 0 epoch 3/10, trial 1 epoch 0/?; about 15:25 left"]
