import pytest

from ghm.tracking import Tracker


@pytest.fixture
def tracker() -> Tracker:
    return Tracker.open(None, "test", "runs")


def test_metrics_of_a_step_arrive_together_and_in_order(tracker):
    run = tracker.start("one", {})
    run.log_metrics({"val/AP": 0.2, "train/loss": 1.0}, step=2)
    run.log_metrics({"val/AP": 0.1, "train/loss": 2.0}, step=1)
    assert tracker.history(run.run_id, "val/AP") == [(1, 0.1), (2, 0.2)]
    assert tracker.history(run.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


def test_more_parameters_than_one_call_takes_are_all_kept(tracker):
    run = tracker.start("one", {})
    run.log_params({f"key.{number}": number for number in range(250)} | {"long": "x" * 10_000})
    params = tracker.client.get_run(run.run_id).data.params
    assert len(params) == 251
    assert params["key.249"] == "249"
    assert len(params["long"]) == 6000


def test_children_are_found_under_their_parent(tracker):
    parent = tracker.start("sweep", {"sweep.name": "s", "sweep.kind": "sweep"})
    children = [tracker.start(f"trial {number}", {}, parent=parent.run_id) for number in range(3)]
    tracker.start("stranger", {})
    assert [run.info.run_id for run in tracker.children(parent.run_id)] == [child.run_id for child in children]
    found = tracker.sweep("s")
    assert found is not None
    assert found.info.run_id == parent.run_id
    assert tracker.sweep("t") is None


def test_only_children_that_never_ended_are_closed(tracker):
    parent = tracker.start("sweep", {})
    ended, _zombie = (tracker.start(name, {}, parent=parent.run_id) for name in ("ended", "zombie"))
    ended.finish("FINISHED", "finished")
    assert tracker.close_children(parent.run_id) == 1
    status = {run.info.run_name: run.info.status for run in tracker.children(parent.run_id)}
    assert status == {"ended": "FINISHED", "zombie": "KILLED"}
    states = {run.info.run_name: run.data.tags["sweep.state"] for run in tracker.children(parent.run_id)}
    assert states == {"ended": "finished", "zombie": "interrupted"}


def test_a_run_is_resumed_under_its_id_unless_the_server_forgot_it(tracker):
    run = tracker.start("one", {})
    run.finish("KILLED", "interrupted")
    again = tracker.resume(run.run_id)
    assert again is not None
    assert again.run_id == run.run_id
    assert tracker.client.get_run(run.run_id).info.status == "RUNNING"
    assert tracker.resume("0" * 32) is None


def test_a_second_tracker_opens_the_same_experiment(tracker):
    assert Tracker.open(None, "test", "runs").experiment_id == tracker.experiment_id


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere.db", "nonsense://x"])
def test_what_cannot_be_reached_is_named_with_the_remedy(uri):
    with pytest.raises(ValueError, match=f"MLFLOW_TRACKING_URI={uri}.*unset it"):
        Tracker.open(uri, "test", "runs")
