"""What is written about a sweep, and what is read of it after whatever happened to its controller."""

import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note, save_note

from sweeps import ledger as ledgers
from sweeps import studies
from sweeps.draw import Search
from sweeps.goal import Goal
from sweeps.grammar import parse
from sweeps.ledger import Ledger
from sweeps.replicates import Replicates
from sweeps.retry import queue_again
from sweeps.states import State
from sweeps.storage import open_storage
from sweeps.trials import Run, identity
from tests.sweeps.toy import LOADER


class Death(BaseException):
    pass


@pytest.fixture
def storage(url, tmp_path):
    return open_storage(url, tmp_path)


def search(*arguments, first=(), sampler=None):
    made = sampler or (lambda number, again: optuna.samplers.RandomSampler(seed=100 * number + again))
    return Search(parse(list(arguments), {}, {}, LOADER), made, optuna.pruners.NopPruner(), list(first))


def opened(storage, searched, name="s"):
    study = studies.find(storage, name)
    if study is None:
        study = studies.create(storage, name, ["maximize"], Path("nowhere"))
    return Ledger(study, searched.pruner)


def fill(ledger, searched, n_trials):
    """Draw until there is nothing more to draw."""
    while len(ledger.trials) < n_trials and (drawn := searched.draw(ledger, n_trials)) is not None:
        ledger.queue(drawn)
    return [trial.params for trial in ledger.trials]


def filled(storage, searched, n_trials):
    ledger = opened(storage, searched)
    fill(ledger, searched, n_trials)
    return ledger


def stored(storage):
    return optuna.load_study(study_name="s", storage=storage).trials


def test_a_trial_is_stored_as_it_lives(storage):
    searched = search("x=interval(0.0,1.0)")
    ledger = filled(storage, searched, 3)
    for number in range(3):
        ledger.start(number)
    ledger.report(0, 1, 0.25)
    ledger.report(0, 1, 0.5)  # said again: the first stands
    ledger.end(0, State.DONE, (0.25,))
    ledger.end(1, State.FAILED, error="Traceback\nE: no", spent=True)
    ledger.requeue(2, 0, 2)
    assert [trial.state for trial in stored(storage)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    again = opened(storage, searched)
    assert again.trials == ledger.trials
    assert (again.trials[0].epochs, again.trials[0].value) == ({1: 0.25}, 0.25)
    assert (again.trials[1].reason, again.trials[1].spent) == ("E: no", True)
    assert again.trials[2].run(0).attempt == 2
    assert again.best == again.trials[0]


def test_what_a_dead_controller_ran_is_queued_with_its_number_its_attempt_and_its_epochs(storage):
    searched = search("x=interval(0.0,1.0)")
    ledger = filled(storage, searched, 2)
    ledger.start(0)
    ledger.requeue(0, 0, 2)
    ledger.start(0)
    ledger.report(0, 1, 0.5)
    trial = opened(storage, searched).trials[0]
    assert (trial.state, trial.run(0).attempt, trial.epochs) == (State.QUEUED, 2, {1: 0.5})


def test_the_seeds_of_a_trial_are_there_after_a_controller_died(storage):
    searched = search("x=interval(0.0,1.0)")
    ledger = filled(storage, searched, 1)
    for replicate in range(3):
        ledger.start(0, replicate)
    ledger.keep(0, 0, (0.5,), (-1.0,))
    ledger.report(0, 2, 0.25, replicate=1)
    ledger.requeue(0, 2, attempt=2)
    assert ledger.trials[0].state == State.RUNNING  # its second run goes on
    trial = opened(storage, searched).trials[0]
    assert trial.state == State.QUEUED
    assert trial.runs == {0: Run(values=(0.5,), violations=(-1.0,)), 1: Run(epochs=2), 2: Run(attempt=2)}
    assert (trial.ended, trial.epochs) == ([trial.runs[0]], {})  # pruners are shown no other seed's curve


@pytest.mark.parametrize("arguments", [("x=0,1,2", "seed=0,1"), ("x=interval(0.0,1.0)", "seed=range(0,100)")])
def test_a_controller_that_dies_at_any_write_leaves_no_second_copy_of_a_point(storage, arguments, monkeypatch):
    searched = search(*arguments)
    whole = fill(opened(storage, searched), searched, 6)
    optuna.delete_study(study_name="s", storage=storage)
    assert len({identity(point) for point in whole}) == 6
    patient = ledgers._patiently
    for survives in range(7):
        writes = 0

        def dying(write, survives=survives):
            nonlocal writes
            if writes == survives:
                raise Death
            writes += 1
            patient(write)

        with monkeypatch.context() as patch, suppress(Death):
            patch.setattr(ledgers, "_patiently", dying)
            ledger = opened(storage, searched)
            fill(ledger, searched, 6)
            for trial in ledger.trials:
                ledger.start(trial.number)
        assert writes == survives
    assert fill(opened(storage, searched), searched, 6) == whole
    assert [trial.params for trial in stored(storage)] == whole


def test_a_lost_answer_to_a_new_trial_makes_no_second_one(storage, monkeypatch):
    searched = search("x=interval(0.0,1.0)")
    ledger = opened(storage, searched)
    create = storage.create_new_trial
    answers = [optuna.exceptions.StorageInternalError("the connection was lost"), None]

    def lossy(*given):
        made = create(*given)
        if (error := answers.pop(0)) is not None:
            raise error
        return made

    monkeypatch.setattr(ledger._durable._storage, "create_new_trial", lossy)
    fill(ledger, searched, 1)
    assert len(ledger.trials) == len(stored(storage)) == 1


def test_a_sampler_that_insists_on_one_point_is_passed_over(storage):
    def stubborn(number, again):
        return optuna.samplers.RandomSampler(seed=0)

    searched = search("x=range(0,30)", sampler=stubborn)
    points = fill(opened(storage, searched), searched, 20)
    assert len({point["x"] for point in points}) == 20


def test_a_space_without_another_point_ends(storage):
    searched = search("x=interval(1.0,1.0)")
    assert fill(opened(storage, searched), searched, 5) == [{"x": 1.0}]


def test_settings_given_by_hand_come_first_however_often_the_sweep_is_begun(storage):
    searched = search("x=interval(0.0,2.0)", "seed=range(0,9)", first=[{"x": 0.25}, {"x": 1.75, "seed": 3}])
    for n_trials in (1, 2, 3):
        points = fill(opened(storage, searched), searched, n_trials)
    assert [point["x"] for point in points[:2]] == [0.25, 1.75]
    assert points[1]["seed"] == 3
    assert len(points) == 3


def test_a_trial_queued_by_hand_is_completed(storage):
    searched = search("x=interval(0.0,2.0)", "seed=range(0,9)")
    opened(storage, searched)
    optuna.load_study(study_name="s", storage=storage).enqueue_trial({"x": 0.5})
    ledger = opened(storage, searched)
    ledger.complete(0, searched.space)
    assert ledger.trials[0].params == stored(storage)[0].params
    assert (ledger.trials[0].params["x"], ledger.trials[0].params["seed"] in range(9)) == (0.5, True)


def test_a_locked_database_is_waited_for(tmp_path):
    storage = open_storage(None, tmp_path)
    searched = search("x=interval(0.0,1.0)")
    ledger = filled(storage, searched, 1)
    storage.engine.dispose()
    lock = sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")
    threading.Timer(7, lock.rollback).start()  # longer than SQLite waits by itself
    begun = time.monotonic()
    ledger.start(0)
    assert time.monotonic() - begun > 5
    assert stored(storage)[0].state == TrialState.RUNNING


def test_what_a_pruner_notes_of_a_trial_outlives_its_controller(storage):
    searched = search("x=interval(0.0,1.0)")
    searched = Search(searched.space, searched.make_sampler, optuna.pruners.SuccessiveHalvingPruner(min_resource=1))
    ledger = filled(storage, searched, 2)
    verdicts = []
    for number, value in ((0, 1.0), (1, 0.0)):
        ledger.start(number)
        ledger.report(number, 1, value)
        verdicts.append(ledger.prunes(number))
    assert verdicts == [False, True]
    assert "completed_rung_0" in opened(storage, searched).memory.trials[0].system_attrs


def test_failed_trials_are_queued_again_and_others_are_not(storage):
    searched = search("x=0,1,2")
    ledger = filled(storage, searched, 3)
    for number in range(3):
        ledger.start(number)
        ledger.report(number, 1, 0.5)
    ledger.end(0, State.DONE, (1.0,))
    ledger.end(1, State.FAILED, error="E: no", spent=True)
    ledger.end(2, State.FAILED, error="E: no")
    study = studies.find(storage, "s")
    with pytest.raises(ValueError, match="0: is no failed trial of s; failed are 1, 2"):
        queue_again(storage, study, [0, 1])
    assert [trial.number for trial in queue_again(storage, study, [1])] == [1]
    assert [trial.number for trial in queue_again(storage, study, [])] == [2]
    trials = opened(storage, searched).trials
    assert [trial.state for trial in trials] == [State.DONE, State.QUEUED, State.QUEUED]
    assert [(trial.run(0).attempt, trial.error, trial.spent) for trial in trials[1:]] == [(1, "", False)] * 2
    assert trials[1].epochs == {1: 0.5}


def test_a_finite_space_that_was_begun_with_fewer_trials_is_completed(storage):
    searched = search("x=0,1,2,3")
    begun = fill(opened(storage, searched), searched, 2)
    assert fill(opened(storage, searched), searched, 20)[:2] == begun
    assert sorted(point["x"] for point in fill(opened(storage, searched), searched, 20)) == [0, 1, 2, 3]


def test_a_study_of_another_space_or_direction_is_left_alone(storage):
    study = studies.create(storage, "s", ["maximize"], Path("nowhere"))
    studies.claim(study, search("x=0,1").space, Goal(("value",), ("maximize",)), Replicates())
    studies.claim(study, search("x=0,1").space, Goal(("value",), ("maximize",)), Replicates())
    for space, direction in (("x=0,2", "maximize"), ("x=0,1", "minimize")):
        with pytest.raises(ValueError, match="study_name=s: holds a sweep over another space"):
            studies.claim(study, search(space).space, Goal(("value",), (direction,)), Replicates())


def test_trials_of_another_study_are_not_taken_for_a_new_ones(storage, tmp_path):
    (tmp_path / "0000").mkdir()
    with pytest.raises(ValueError, match="holds trials that the study's storage does not know"):
        studies.create(storage, "s", ["maximize"], tmp_path)
    assert studies.find(storage, "s") is None


def test_the_dashboards_note_links_to_mlflow_and_keeps_what_somebody_wrote_into_it(storage):
    searched = search("x=interval(0.0,1.0)")
    ledger = filled(storage, searched, 1)
    ledger.point_to("http://one/#/1", "[Runs](http://one/#/1) of x")
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.user_attrs["mlflow"] == "http://one/#/1"
    assert get_note(study) == "[Runs](http://one/#/1) of x"
    save_note(study, get_note(study) + ", which went well")
    opened(storage, searched).point_to("http://one/#/1", "[Runs](http://one/#/1) of x")
    opened(storage, searched).point_to("http://two/#/1", "[Runs](http://two/#/1) of x")
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.user_attrs["mlflow"] == "http://two/#/1"
    assert get_note(study) == "[Runs](http://two/#/1) of x, which went well"
