"""A sweep that may use so much uses no more, ends in order, and goes on where it may use more."""

from pathlib import Path

import pytest

from sweeps.budget import Budget, Meter, Used
from tests.sweeps.test_launch import states, study, sweep

SPACE = "x=1,2,3,4,5,6"  # six trials of five epochs
SIX = {"n_trials": 6}


def recorded() -> int:
    return sum(len(trial.intermediate_values) for trial in study().trials)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("jobs", "epochs"), [(1, 7), (4, 13)])
def test_a_budget_of_epochs_is_never_overshot_and_a_larger_one_goes_on(jobs, epochs, capsys):
    sweep(SPACE, **SIX, n_jobs=jobs, budget=Budget(epochs=epochs))
    assert epochs - jobs < recorded() <= epochs
    assert "RUNNING" not in states()
    shown = " ".join(capsys.readouterr().out.split())
    assert f"The budget is spent: {recorded()} of {epochs} epochs" in shown
    sweep(SPACE, **SIX, n_jobs=jobs, budget=Budget(epochs=30))
    assert (states(), recorded()) == (["COMPLETE"] * 6, 30)


@pytest.mark.usefixtures("cluster")
def test_hours_are_kept_over_all_commands(capsys):
    allowed = Budget(hours=6 / 3600)
    sweep(SPACE, **SIX, n_jobs=1, budget=allowed, seconds=2)
    used = study().user_attrs["used"]["seconds"]
    assert 0 < recorded() < 30
    assert "hours. " in capsys.readouterr().out
    begun = recorded()
    sweep(SPACE, **SIX, n_jobs=1, budget=Budget(hours=used / 3600), seconds=2)
    assert recorded() == begun
    assert not Path("runs/sweeps/toy/0005").exists()


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"hours": 0}, r"budget\.hours=0: must be a number above 0, or null"),
        ({"epochs": 2.5}, r"budget\.epochs=2\.5: must be a whole number above 0"),
        ({"gpu_hours": True}, r"budget\.gpu_hours=True: must be a number"),
    ],
)
def test_what_is_no_budget_is_refused(budget, said):
    with pytest.raises(ValueError, match=f"hydra.sweeper.{said}"):
        Budget(**budget)


def test_gpu_hours_without_gpus_are_refused():
    with pytest.raises(ValueError, match=r"budget\.gpu_hours=2: trials take no GPU here; give budget\.hours"):
        sweep(budget=Budget(gpu_hours=2))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def metered(gpus=1.0, before=None, epochs=0, **limits):
    clock = Clock()
    return clock, Meter(Budget(**limits), gpus, before or Used(), lambda: epochs, clock)


def test_gpu_hours_count_what_running_trials_hold_and_the_epochs_they_are_in():
    clock, meter = metered(gpus=2, before=Used(0, 400), gpu_hours=1)  # 3200 GPU seconds are left
    meter.started(0)
    meter.started(1)
    clock.now += 200
    for trial in (0, 1):
        meter.reported(trial)  # epochs of 200 s; 800 are used
        assert meter.allows(trial)
        meter.goes_on(trial)
    clock.now += 200
    meter.reported(0)  # 1600
    assert meter.allows(0)
    meter.goes_on(0)
    clock.now += 100
    meter.reported(1)  # 2000, with an epoch of 300 s; 200 for the rest of trial 0's and 600 for its own fit
    assert meter.allows(1)
    meter.goes_on(1)
    clock.now += 100  # 2400
    meter.reported(0)  # 2400, 400 for the rest of trial 1's, 400 for its own: fits exactly
    assert meter.allows(0)
    clock.now += 1
    assert not meter.allows(0)
    meter.ended(0)
    clock.now += 100
    meter.ended(1)
    assert meter.used.gpu_seconds == pytest.approx(400 + 2 * (601 + 701))


def test_a_trial_is_not_started_where_its_first_epoch_would_not_end_in_time():
    clock, meter = metered(hours=1)
    assert meter.allows()  # nobody knows how long one takes
    meter.started(0)
    clock.now += 1000  # with what comes before it
    meter.reported(0)
    clock.now += 200
    meter.reported(0)
    clock.now += 1500
    assert not meter.allows()
    assert meter.allows(0)  # its epochs take 200 s
    clock.now += 701
    assert not meter.allows(0)


def test_an_epoch_that_is_under_way_counts_as_one():
    _, meter = metered(epochs=7, before=Used())
    assert meter.allows()
    for limit, allowed in ((9, True), (8, False)):
        _, meter = metered(epochs=7)
        meter.budget = Budget(epochs=limit)
        meter.started(0)
        assert meter.allows() == allowed
        meter.reported(0)
        assert meter.allows(0)
