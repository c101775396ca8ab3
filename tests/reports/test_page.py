"""The report of a sweep whose numbers are known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ghm.reports import note, page, sweep
from ghm.tracking import Sender, Spool, Tracker

TRIALS = [  # params, AP per epoch, state
    ({"loss": "ghm", "loss.cls.bins": 30}, [0.1, 0.3], "done"),
    ({"loss": "focal", "loss.cls.gamma": 1.5}, [0.2, 0.4], "done"),
    ({"loss": "focal", "loss.cls.gamma": 2.5}, [0.2, 0.35], "done"),
    ({"loss": "ghm", "loss.cls.bins": 5}, [0.05], "pruned"),
    ({"loss": "ghm", "loss.cls.bins": 7}, [], "failed"),
]

SPEED = [150.0, 100.0, 90.0, 100.0, 100.0]


@pytest.fixture
def tracker() -> Tracker:
    return Tracker.open(None, "test", "runs")


SWEEP = {"sweep.name": "s", "sweep.kind": "sweep", "sweep.objective": "val/AP"}


def record(tracker: Tracker, chance: float = 0.01, **about: str) -> None:
    Spool(Path("s")).start("s", SWEEP | about, key="s")
    for number, (params, curve, state) in enumerate(TRIALS):
        label = " ".join(f"{key.split('.')[-1]}={value}" for key, value in params.items())
        run = Spool(Path("s") / str(number))
        run.start(f"{label} #{number}", {"sweep.trial": number, "sweep.params": json.dumps(params)}, parent="s")
        run.log_params({"val/chance_AP50": chance})
        for epoch, value in enumerate(curve, start=1):
            metrics = {"val/AP": value, "val/AP50": 1.5 * value, "val/AP75": 0.5 * value}
            metrics["time/images_per_s"] = SPEED[number]
            run.log_metrics(metrics, step=epoch)
        if state == "failed":
            run.set_tags({"error": "Traceback ...\nRuntimeError: <b>out of memory</b>"})
        run.finish(state)
    Sender(tracker, lambda: [Path("s"), *(Path("s") / str(number) for number in range(len(TRIALS)))]).once()


def test_the_ranking_is_by_objective_and_tells_states_apart(tracker):
    record(tracker)
    rows = page.ranking(sweep.load(tracker, "s"))
    assert [row[0] for row in rows] == ["1", "2", "3", "pruned", "failed"]
    assert [row[2] for row in rows][:3] == ["loss=focal gamma=1.5", "loss=focal gamma=2.5", "loss=ghm bins=30"]
    assert rows[0][3:6] == ("0.400", "0.600", "0.200")
    assert rows[4][3] == ""


def test_a_minimized_objective_ranks_the_other_way(tracker):
    record(tracker, **{"sweep.direction": "minimize"})
    assert sweep.load(tracker, "s").done.iloc[0]["label"] == "loss=ghm bins=30"


TWO = {"sweep.objective": "val/AP,time/images_per_s", "sweep.direction": "maximize,maximize"}


def test_of_two_objectives_the_front_is_marked_everywhere(tracker):
    record(tracker, **TWO)
    result = sweep.load(tracker, "s")
    assert result.front == [1, 0]  # trial 2 is neither better nor faster than trial 1
    assert page.columns(result)[3:] == ("val/AP", "time/images_per_s", "AP50", "AP75", "min")
    rows = page.ranking(result)
    assert [row[0] for row in rows] == ["1 front", "2", "3 front", "pruned", "failed"]
    assert rows[2][3:5] == ("0.300", "150")
    verdict = page.verdict(result)
    assert verdict.startswith("2 of 3 trials are on the Pareto front")
    assert (
        "largest val/AP 0.400 (loss=focal gamma=1.5), largest time/images_per_s 150.000 (loss=ghm bins=30)" in verdict
    )
    text = page.write(result, tracker, Path("report")).read_text()
    assert "<figcaption>val/AP over time/images_per_s: the Pareto front</figcaption>" in text
    run = tracker.client.get_run(result.run_id)
    assert run.data.metrics == {"val/AP": 0.4, "time/images_per_s": 100.0}
    assert run.data.tags["front.trials"] == "1,0"
    assert "|rank|run|val/AP|time/images_per_s|AP50|AP75|min|" in run.data.tags["mlflow.note.content"]


def test_a_trial_that_breaks_a_bound_is_shown_and_not_chosen(tracker):
    record(tracker, **{"sweep.bounds": json.dumps({"at_least": {"time/images_per_s": 120}})})
    result = sweep.load(tracker, "s")
    assert [row[0] for row in page.ranking(result)] == ["1", "out of bounds", "out of bounds", "pruned", "failed"]
    assert page.verdict(result).startswith("Best: loss=ghm bins=30 with val/AP 0.300")
    record_none = {"sweep.bounds": json.dumps({"at_most": {"time/images_per_s": 1}}), "sweep.name": "none"}
    Spool(Path("none")).start("none", SWEEP | record_none, key="none")
    assert result.allowed["trial"].to_list() == [0]


def test_the_verdict_names_the_best_of_each_loss_and_asks_for_seeds(tracker):
    record(tracker)
    verdict = page.verdict(sweep.load(tracker, "s"))
    assert verdict.startswith("Best: loss=focal gamma=1.5 with val/AP 0.400 (val/AP50 0.600).")
    assert "ghm 0.300 (loss=ghm bins=30)" in verdict
    assert "gamma=2.5" not in verdict
    assert "other seeds" in verdict
    assert "other seeds" not in page.verdict(replace(sweep.load(tracker, "s"), keys=["loss", "seed"]))


def test_a_sweep_that_does_not_beat_chance_says_so(tracker):
    record(tracker, chance=0.7)
    result = sweep.load(tracker, "s")
    assert not result.learned
    assert "nothing was learned" in page.verdict(result)


def test_curves_hold_every_epoch(tracker):
    record(tracker)
    assert sweep.load(tracker, "s").curves["val/AP"][1] == [(1, 0.2), (2, 0.4)]


def test_the_page_is_one_file_with_every_figure_and_no_markup_from_outside(tracker):
    record(tracker)
    written = page.write(sweep.load(tracker, "s"), tracker, Path("report"))
    text = written.read_text()
    for caption in ("Ranking", "Learning curves", "val/AP over loss", "val/AP over loss.cls.gamma"):
        assert f"<figcaption>{caption}</figcaption>" in text
    assert "val/AP over loss.cls.bins" not in text  # one finished value is no curve
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in text
    assert 'src="http' not in text
    assert set(re.findall(r'href="(http[^/]*//[^/]*)/', text)) == {"http://127.0.0.1:5000"}  # MLflow's pages
    table = pd.read_csv("report/ranking.csv")
    assert list(table["trial"][:3]) == [1, 2, 0]
    [parent] = tracker.sweeps("s")
    kept = {file.path for file in tracker.client.list_artifacts(parent.info.run_id, "figures")}
    assert {"figures/ranking.png", "figures/learning_curves.png", "figures/by_loss.png"} <= kept


def test_the_sweeps_own_run_says_what_came_of_it(tracker):
    record(tracker)
    result = sweep.load(tracker, "s")
    page.write(result, tracker, Path("report"))
    run = tracker.client.get_run(result.run_id)
    assert run.data.metrics == {"val/AP": 0.4}
    best = {"best.trial": "1", "best.loss": "focal", "best.loss.cls.gamma": "1.5"}
    assert best.items() <= run.data.tags.items()
    text = run.data.tags["mlflow.note.content"]
    assert text.startswith("**Best: loss=focal gamma=1.5 with val/AP 0.400")
    [winner] = [one.info.run_id for one in tracker.children(result.run_id) if one.data.tags["sweep.trial"] == "1"]
    assert f"|1|[loss=focal gamma=1.5 #1](#/experiments/1/runs/{winner})|0.400|" in text
    assert f"![](get-artifact?path=figures/learning_curves.png&run_uuid={result.run_id})" in text


def test_a_ranking_too_long_for_a_note_is_cut(tracker, monkeypatch):
    monkeypatch.setattr("ghm.reports.note.MOST", 2)
    record(tracker)
    result = sweep.load(tracker, "s")
    text = note.note(result, "1", "verdict", [page.columns(result), *page.ranking(result)], [])
    assert text.count("#/experiments/1/runs/") == 2
    assert "and 3 more" in text


def test_an_unknown_sweep_is_named(tracker):
    with pytest.raises(ValueError, match="study_name=other"):
        sweep.load(tracker, "other")


def test_a_sweep_without_ended_trials_is_named(tracker):
    tracker.begin("s", "s", SWEEP, None, at=1)
    with pytest.raises(ValueError, match="study_name=s: no trial"):
        sweep.load(tracker, "s")


def test_of_two_sweeps_of_one_name_each_is_reported_by_its_key_alone(tracker):
    record(tracker)
    tracker.begin("other", "s", SWEEP, None, at=1)
    assert len(sweep.load(tracker, "s", key="s").trials) == len(TRIALS)
    with pytest.raises(ValueError, match="holds 2 sweeps of this name; report where it was run"):
        sweep.load(tracker, "s")
