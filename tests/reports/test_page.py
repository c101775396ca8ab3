"""The report of a sweep whose numbers are known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

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
        tags = {"sweep.trial": number, "sweep.params": json.dumps(params)}
        run.start(f"{label} #{number}", tags, "s", f"s-{number:04d}")
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
    assert "<h2>Pareto front</h2>" in text
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
    assert "One seed each: repeat with hydra.sweeper.replicates=5" in verdict
    assert "other seeds" not in page.verdict(replace(sweep.load(tracker, "s"), keys=["loss", "seed"]))


def test_a_sweep_that_does_not_beat_chance_says_so(tracker):
    record(tracker, chance=0.7)
    result = sweep.load(tracker, "s")
    assert not result.learned
    assert "nothing was learned" in page.verdict(result)


def test_curves_hold_every_epoch(tracker):
    record(tracker)
    assert sweep.load(tracker, "s").curves["val/AP"][1] == [(1, 0.2), (2, 0.4)]


def test_the_page_is_one_file_with_every_chart_and_no_markup_from_outside(tracker):
    record(tracker)
    written = page.write(sweep.load(tracker, "s"), tracker, Path("report"))
    text = written.read_text().replace(get_plotlyjs(), "")
    for title in ("Ranking", "Learning curves", "Slices", "Parallel coordinates", "Cost of each improvement"):
        assert f"<h2>{title}</h2>" in text
    assert "<h2>Importance</h2>" not in text  # of three trials nobody can tell
    assert "<b>out of memory" not in text
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in text
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="', text)
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


SEEDED = {
    "ghm": [0.41, 0.43, 0.44, 0.42],
    "focal": [0.36, 0.37, 0.39, 0.375],
    "cross_entropy": [0.40, 0.44, 0.42, 0.415],
}


def record_seeds(tracker: Tracker, replicates: bool) -> None:
    """Of each loss several seeds: as runs below a trial, or as trials of a swept seed."""
    Spool(Path("s")).start("s", SWEEP, key="s")
    folders, number = [Path("s")], 0

    def run(key: str, tags: dict[str, object], parent: str, values: list[float], **seed: int) -> None:
        spool = Spool(Path(key))
        spool.start(f"loss={loss} #{number}", tags, parent, key)
        spool.log_params({"val/chance_AP50": 0.01} | seed)
        for epoch, value in enumerate(values, start=1):
            spool.log_metrics({"val/AP": value, "val/AP50": 1.5 * value}, epoch)
        spool.finish("done")
        folders.append(Path(key))

    for loss, values in SEEDED.items():
        tags = {"sweep.trial": number, "sweep.params": json.dumps({"loss": loss}), "sweep.replicates": len(values)}
        if replicates:
            run(f"s-{number:04d}", tags, "s", [sum(values) / 4])
        for seed, value in enumerate(values):
            if replicates:
                run(f"s-{number:04d}-{seed}", {}, f"s-{number:04d}", [value / 2, value], seed=seed)
            else:
                tags = {"sweep.trial": number, "sweep.params": json.dumps({"loss": loss, "seed": seed})}
                run(f"s-{number:04d}", tags, "s", [value / 2, value])
                number += 1
        number += replicates
    Sender(tracker, lambda: folders).once()


@pytest.mark.parametrize("replicates", [True, False])
def test_over_seeds_a_loss_is_ranked_by_its_mean_and_what_is_not_distinguishable_is_said_to_be(tracker, replicates):
    record_seeds(tracker, replicates)
    result = sweep.load(tracker, "s")
    verdict = page.verdict(result)
    assert verdict.startswith("Best: loss=ghm with val/AP 0.425 ± 0.021, mean of 4 seeds.")
    assert "Better than loss=focal (0.374 ± 0.020) by 0.051 (95 % interval 0.0" in verdict
    assert "Not distinguishable from loss=cross_entropy (0.419 ± 0.026): 0.006" in verdict
    assert re.search(r": 0\.006 ahead \(95 % interval .*\); about \d+ more seeds of each would tell", verdict)
    assert verdict.endswith("p is corrected for 3 comparisons (Holm).")
    assert "One seed each" not in verdict
    rows = page.over_seeds(result)
    assert [row[2] for row in rows[1:]] == ["loss=ghm", "loss=cross_entropy", "loss=focal"]
    assert rows[1] == ("1", "4", "loss=ghm", "0.425 ± 0.021", "0.410", "0.440")
    first = int(result.trials[result.trials["loss"] == "ghm"]["trial"].min())
    assert [epoch for epoch, _ in result.curves["val/AP"][first]] == [1, 2]
    assert "<h2>Over seeds</h2>" in page.write(result, tracker, Path("report")).read_text()


def test_a_key_that_names_one_thing_alone_is_not_what_is_compared(tracker):
    """As the one network of Table 7 at small scale, beside its losses for boxes."""
    record_seeds(tracker, replicates=False)
    result = sweep.load(tracker, "s")
    trials = result.trials.assign(model="small", rate=result.trials["seed"] % 2)
    result = replace(result, keys=["model", *result.keys], trials=trials)
    assert result.group == "loss"
    assert "Better than loss=focal" in page.verdict(result)
    alone = replace(result, keys=[*result.keys, "rate"], trials=trials[trials["loss"] == "ghm"])
    assert [arm.mean for arm in alone.rivals] == pytest.approx([0.425, 0.425])  # of one loss, its settings


def test_what_a_race_dropped_is_called_probably_worse(tracker):
    record_seeds(tracker, replicates=True)
    result = sweep.load(tracker, "s")
    focal = int(result.trials[result.trials["loss"] == "focal"]["trial"].iloc[0])
    result.trials.loc[result.trials["trial"] == focal, "state"] = "pruned"
    for seed in (2, 3):
        del result.seeds[focal][seed]
    assert "loss=focal (0.365 ± 0.064) is probably worse, as the race dropped it: 0.055" in page.verdict(result)
    assert page.over_seeds(result)[-1][:3] == ("dropped", "2", "loss=focal")
