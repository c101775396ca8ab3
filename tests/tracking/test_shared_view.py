"""The view of a sweep that MLflow's pages open on."""

import base64
import json
import zlib

import pytest

from ghm.tracking import Spool, Tracker, link, shared_view
from ghm.tracking.sender import send


def state(text: str) -> dict:
    """As MLflow's pages read it."""
    envelope = json.loads(text)
    assert isinstance(envelope["createdAt"], int)
    header, packed = envelope["state"].split(";")
    assert header == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_it_holds_the_trials_of_one_sweep_by_objective_with_its_curves_first():
    view = state(shared_view("abc", "rates", ["val/AP50"], ["loss", "optimizer.lr"], "loss", False))
    assert view["searchFilter"] == "tags.`ghm.key` LIKE 'abc-%'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`val/AP50`", False)
    assert view["selectedColumns"][:4] == [
        "params.`loss`",
        "params.`optimizer.lr`",
        "metrics.`val/AP50`",
        "metrics.`val/AP`",
    ]
    assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "loss"}]
    charts = [(chart["type"], chart.get("metricKey")) for chart in view["compareRunCharts"]]
    assert charts[:2] == [("LINE", "val/AP50"), ("LINE", "val/AP75")]
    assert ("BAR", "val/AP50") in charts


@pytest.mark.parametrize("swept", [["seed"], []])
def test_without_names_to_compare_each_trial_has_its_own_curve(swept):
    view = state(shared_view("abc", "s", ["val/AP"], swept, None, True))
    assert view["groupBy"] is None
    assert view["orderByAsc"]


def test_it_fits_into_a_tag_of_an_experiment():
    swept = [f"some.long.key.of.a.setting.number.{number}" for number in range(30)]
    assert len(shared_view("a" * 32, "s" * 100, ["val/AP"], swept, swept[0], False)) < 5000


def test_it_is_sent_with_the_record_and_found_by_the_link(tmp_path):
    tracker = Tracker.open(None, "test", str(tmp_path / "runs"))
    spool = Spool(tmp_path / "s")
    spool.start("s", {}, key="abc")
    spool.share("abc", shared_view("abc", "s", ["val/AP"], ["loss"], "loss", False))
    send(spool.folder, tracker)
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    assert state(tags["mlflow.sharedViewState.abc"])["searchFilter"] == "tags.`ghm.key` LIKE 'abc-%'"
    assert link("http://host:5000/", "7", "abc").startswith("http://host:5000/#/experiments/7/runs?")
    assert link("sqlite:///x.db", "7", "abc").startswith("http://127.0.0.1:5000/#/")
    assert "viewStateShareKey=abc" in link("http://host", "7", "abc")


def test_of_several_objectives_each_run_is_a_point():
    view = state(shared_view("abc", "s", ["val/AP", "time/images_per_s"], ["loss"], "loss", False))
    assert view["groupBy"] is None
    chart = view["compareRunCharts"][0]
    assert (chart["type"], chart["xaxis"]["key"], chart["yaxis"]["key"]) == ("SCATTER", "time/images_per_s", "val/AP")
    assert "metrics.`time/images_per_s`" in view["selectedColumns"]
