"""The client over a database of its own: what is created, found and sent in one call."""

import itertools
import re

import pytest

from ghm.tracking import Tracker
from ghm.tracking.client import Away, Early, Point, Refused, waiting_at_most

CLOCK = itertools.count(1)  # runs are ordered by when they began


@pytest.fixture
def tracker() -> Tracker:
    return Tracker.open(None, "test", "runs")


def begin(tracker: Tracker, key: str, parent: str | None = None, **tags: str) -> str:
    return tracker.begin(key, f"run {key}", tags, parent, at=next(CLOCK))


def test_metrics_of_a_step_arrive_together_and_in_order(tracker):
    run = tracker.run(begin(tracker, "one"))
    run.log_points([Point("val/AP", 0.2, 2, 2), Point("train/loss", 1.0, 2, 2)])
    run.log_points([Point("val/AP", 0.1, 1, 1), Point("train/loss", 2.0, 1, 1)])
    assert tracker.history(run.run_id, "val/AP") == [(1, 0.1), (2, 0.2)]
    assert tracker.history(run.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_a_point_sent_twice_is_stored_once(tracker):
    run = tracker.run(begin(tracker, "one"))
    for _ in range(2):
        run.log_points([Point("val/AP", 0.1, 1, 1)])
    assert tracker.history(run.run_id, "val/AP") == [(1, 0.1)]


def test_more_parameters_than_one_call_takes_are_all_kept(tracker):
    run = tracker.run(begin(tracker, "one"))
    run.log_params({f"key.{number}": number for number in range(250)} | {"long": "x" * 10_000})
    params = tracker.client.get_run(run.run_id).data.params
    assert len(params) == 251
    assert params["key.249"] == "249"
    assert len(params["long"]) == 6000


def test_children_are_found_under_their_parent(tracker):
    parent = begin(tracker, "s", **{"sweep.name": "s", "sweep.kind": "sweep"})
    children = [begin(tracker, f"s-{number}", parent="s") for number in range(3)]
    begin(tracker, "stranger")
    assert [run.info.run_id for run in tracker.children(parent)] == children
    assert [run.info.run_id for run in tracker.sweeps("s")] == [parent]
    assert tracker.sweeps("t") == []


def test_two_sweeps_of_one_name_are_two_runs(tracker):
    mine, other = (begin(tracker, key, **{"sweep.name": "s", "sweep.kind": "sweep"}) for key in ("mine", "other"))
    begin(tracker, "mine-0000", parent="mine")
    assert [run.info.run_id for run in tracker.sweeps("s")] == [mine, other]
    assert tracker.children(other) == []


def test_a_run_begun_again_goes_on_under_its_id(tracker):
    run_id = begin(tracker, "one")
    tracker.run(run_id).finish("KILLED", "queued")
    assert begin(tracker, "one", attempt="2") == run_id
    record = tracker.client.get_run(run_id)
    assert record.info.status == "RUNNING"
    assert (record.data.tags["sweep.state"], record.data.tags["attempt"]) == ("running", "2")


def test_a_trial_whose_sweep_is_not_there_yet_waits(tracker):
    with pytest.raises(Early, match="the run of the sweep \\(s\\) is not there yet"):
        begin(tracker, "s-0", parent="s")
    assert tracker.find("s-0") is None


def test_a_second_tracker_opens_the_same_experiment(tracker):
    assert Tracker.open(None, "test", "runs").experiment_id == tracker.experiment_id


def test_what_can_never_be_stored_is_told_from_a_server_that_is_away(tracker):
    run = tracker.run(begin(tracker, "one"))
    with pytest.raises(Refused):
        run.log_params({"a\nb": 1})
    with pytest.raises(Away), waiting_at_most(2):
        Tracker.open("http://127.0.0.1:9", "test", "runs").run("0" * 32).set_tags({"a": "b"})


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere.db", "nonsense://x"])
def test_what_cannot_be_reached_is_named_with_the_remedy(uri):
    with pytest.raises(ValueError, match=f"MLFLOW_TRACKING_URI={re.escape(uri)}.*unset it"):
        Tracker.open(uri, "test", "runs").reach()
