"""What a sweep says in a log."""

import io

import pytest
from rich.console import Console

from sweeps import view
from sweeps.goal import Goal
from sweeps.replicates import Replicates
from sweeps.states import State
from sweeps.trials import Run, Trial
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


class Known:
    """A ledger of trials that are given."""

    def __init__(self, *trials):
        self.trials, self.front = list(trials), [trial for trial in trials if trial.state == State.DONE]
        self.best = self.front[0] if self.front else None

    def count(self, *states):
        return sum(trial.state in states for trial in self.trials)


def test_time_and_cost_left_are_those_of_the_runs_so_far(clock):
    silent = Console(file=io.StringIO(), width=200)
    shown = View(
        "s", Goal(("val/AP",), ("maximize",)), 4, console=silent, left=4, takes={"CPU": 2, "GPU": 0}, _begun=0.0
    )
    assert shown.time_left() == ""  # nobody knows yet
    shown.started(0, "loss=ghm")
    shown.started(1, "loss=focal")
    clock[0] = 1800.0
    shown.gone(0)
    shown.gone(1)
    shown.left = 2
    # Two runs of half an hour side by side: two more take as long, and an hour of two CPUs.
    assert shown.time_left() == "about 30:00 left, 2 CPU-hours"
    shown.takes = {"CPU": 2, "GPU": 0.5}
    assert shown.time_left() == "about 30:00 left, 0.5 GPU-hours"
    shown.started(2, "loss=ohem")
    clock[0] = 2700.0
    shown.reported(2, 7, 14, 0.1)
    assert shown.time_left() == "about 27:00 left, 0.38 GPU-hours"  # one and a half of 30 minutes, 2.5 in 45 minutes


def test_the_panel_shows_what_runs_what_ended_and_why_and_the_best_with_its_interval(clock):
    shown = View("s", Goal(("val/AP",), ("maximize",)), 9, replicates=Replicates(3), left=27, _begun=0.0)
    runs = {seed: Run(values=(value,)) for seed, value in enumerate((0.1, 0.2, 0.3))}
    best = Trial(0, {"loss": "ghm"}, State.DONE, runs, values=(0.2,))
    pruned = Trial(1, {"loss": "focal"}, State.PRUNED, {}, {3: 0.1}, error="MedianPruner: 0.1 after epoch 3")
    shown.ended(Known(best, pruned), best)
    shown.ended(Known(best, pruned), pruned)
    shown.started(6, "loss=ohem")
    shown.reported(6, 2, 10, 0.05)
    text = io.StringIO()
    Console(file=text, width=160).print(shown.render())
    for line in (
        "best val/AP 0.2000 ± 0.2484 over 3 seeds: trial 0, loss=ghm",
        "trial 1 pruned: loss=focal, MedianPruner: 0.1 after epoch 3",
        "1 of 9 done, 1 running, 1 pruned, 0 failed",
    ):
        assert line in text.getvalue()
    assert "trial 2, seed 0" in text.getvalue()
    for number in range(9):
        shown.ended(Known(pruned), Trial(number, {}, State.FAILED, error="OSError: no"))
    text = io.StringIO()
    Console(file=text, width=160).print(shown.render())
    assert text.getvalue().count("OSError: no") == view.LAST
