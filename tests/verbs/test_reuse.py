"""What was trained is not trained again: which runs are the same, and what a sweep makes of them."""

import importlib.metadata
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow.tracking import MlflowClient

from ghm.job import Job
from ghm.record import same
from ghm.settings.paths import CONF, absolute
from ghm.tracking import Spool, Tracker
from sweeps import reuse
from sweeps.goal import Goal
from sweeps.reuse import Reuse
from tests.coco import write_content

SMALL = ("data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4", "figures=false")
SHORT = (*SMALL, "epochs=2", "loss.prior=null")


def key(*overrides: str, device: str = "CPU: one") -> str | None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = absolute(compose("train", ["cwd=.", "dir=run", "choices={}", *overrides]))
    return same.key(Job.of(cfg), device)


def begun() -> int:
    """How many trainings were begun here, in whatever sweep."""
    return len(list(Path("runs").rglob("run.json")))


def children(name: str) -> list:
    tracker = Tracker.open(None, "ghm", "runs")
    [sweep] = tracker.sweeps(name)
    return sorted(tracker.children(sweep.info.run_id), key=lambda run: int(run.data.tags["sweep.trial"]))


@pytest.mark.usefixtures("cluster")
def test_a_grid_that_was_trained_is_known_and_of_a_changed_one_the_changed_points_alone_are_trained(
    ghm, capsys, monkeypatch
):
    grid = ("train", "-m", *SHORT, "seed=1,2", "hydra.sweeper.n_jobs=2")
    assert ghm("train", *SHORT, "loss=focal", "seed=2") == 0  # a run of no sweep counts as well
    assert ghm(*grid, "loss=ghm,focal", "hydra.sweeper.study_name=first") in (0, 1)
    assert begun() == 4
    first = children("first")
    assert ["reused" in run.data.tags for run in first] == [False, False, False, True]
    capsys.readouterr()

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.launch.connected", None)  # no Ray is needed, nor started
        start = time.monotonic()
        assert ghm(*grid, "loss=ghm,focal", "hydra.sweeper.study_name=again") in (0, 1)
        took = time.monotonic() - start
    assert begun() == 4
    assert took < 60
    shown = capsys.readouterr().out
    assert "trial 0 is known from " in shown
    assert "of sweep first" in shown
    again = children("again")
    assert [run.data.metrics for run in again] == [run.data.metrics for run in first]
    assert [run.data.tags["reused"] for run in again][:3] == [run.info.run_id for run in first][:3]
    assert [run.data.params["loss"] for run in again] == ["ghm", "focal", "ghm", "focal"]
    client = MlflowClient("sqlite:///runs/mlflow.db")
    curves = [[client.get_metric_history(run.info.run_id, "val/AP") for run in of] for of in (first, again)]
    assert [[(one.step, one.value) for one in curve] for curve in curves[0]] == [
        [(one.step, one.value) for one in curve] for curve in curves[1]
    ]

    assert ghm("plan", *grid[2:], "loss=ghm,focal", "hydra.sweeper.study_name=planned") == 0
    assert "4 trials: 4 known" in capsys.readouterr().out
    capsys.readouterr()
    assert ghm("plan", *grid[2:], "loss=ghm,focal", "hydra.sweeper.reuse=false", "hydra.sweeper.study_name=p") == 0
    assert "4 trials: 4 new" in capsys.readouterr().out
    # The best of it, as its file has it, is what was trained.
    best = ("plan", "--config-dir", "runs/conf", "+best=again", "seed=1,2", "hydra.sweeper.study_name=best")
    assert ghm(*best) == 0
    assert "2 trials: 2 known" in capsys.readouterr().out
    best = ("train", "-m", "--config-dir", "runs/conf", "+best=first,again", "seed=1", "hydra.sweeper.study_name=best")
    assert ghm(*best) in (0, 1)
    assert begun() == 4
    assert ["reused" in run.data.tags for run in children("best")] == [True, True]
    assert "best=again" in Path("runs/sweeps/best/report/index.html").read_text()
    changed = ("loss=focal", "loss.cls.weight=1,2")
    assert ghm(*grid, *changed, "hydra.sweeper.study_name=weights") in (0, 1)  # focal's own weight is 1
    assert begun() == 6
    assert ["reused" in run.data.tags for run in children("weights")].count(True) == 2


@pytest.mark.usefixtures("cluster")
def test_seeds_of_a_trial_are_known_one_by_one(ghm, capsys):
    swept = ("train", "-m", *SHORT, "loss=focal", "hydra.sweeper.race=0")
    assert ghm("train", *SHORT, "loss=focal", "seed=1") == 0
    seeds = ("hydra.sweeper.replicates=2", "hydra.sweeper.study_name=seeds")
    assert ghm("plan", *swept[2:], *seeds) == 0
    assert "(1 of 2 seeds known)" in capsys.readouterr().out
    assert ghm(*swept, *seeds) in (0, 1)
    assert begun() == 2
    tracker = Tracker.open(None, "ghm", "runs")
    [trial] = children("seeds")
    below = {run.data.params["seed"]: run for run in tracker.children(trial.info.run_id)}
    assert {seed: "reused" in run.data.tags for seed, run in below.items()} == {"0": False, "1": True}
    assert trial.data.metrics["val/AP"] == sum(run.data.metrics["val/AP"] for run in below.values()) / 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "best/seeds.yaml; ghm train --config-dir" in shown
    assert ghm("plan", "--config-dir", "runs/conf", "+best=seeds", "hydra.sweeper.study_name=best") == 0
    assert "1 trial: 1 known" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other",
    [
        ["threads=2"],
        ["seed=1"],
        ["epochs=15"],
        ["loss.cls.weight=2"],
        ["data.seed=1"],
        ["scaling=workers", "scaling.num_workers=2"],
    ],
)
def test_what_decides_a_number_makes_another_run(other):
    assert key(*SMALL) != key(*SMALL, *other)


@pytest.mark.parametrize(
    "other", [["keep=1"], ["figures=true"], ["dir=elsewhere"], ["objective=val/AP50"], ["loader_processes=2"]]
)
def test_where_a_run_happens_and_what_is_kept_of_it_does_not(other):
    assert key(*SMALL) == key(*SMALL, *other)


def test_table_6_is_of_the_trainings_of_table_5():
    assert key("+sweep=table6", "+scale=small") == key("+sweep=table5", "+scale=small")


def test_device_versions_and_code_count(monkeypatch, tmp_path):
    before = key(*SMALL)
    assert key(*SMALL, device="CPU: other") != before
    version = importlib.metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "2.0" if name == "torchvision" else version(name))
        same._versions.cache_clear()
        assert key(*SMALL) != before
    same._versions.cache_clear()
    edited = tmp_path / "ghm"
    shutil.copytree(CONF.parent / "ghm", edited)
    monkeypatch.setattr(same, "_PACKAGE", edited)
    same.code.cache_clear()
    assert key(*SMALL) == before
    for file, counts in (("losses/focal.py", True), ("reports/page.py", False)):
        (edited / file).write_text((edited / file).read_text() + "\n# edited\n")
        same.code.cache_clear()
        assert (key(*SMALL) != before) == counts
        shutil.copy(CONF.parent / "ghm" / file, edited / file)
    same.code.cache_clear()


def test_code_of_ones_own_counts_and_a_group_that_changes_its_size_is_like_no_other(monkeypatch, tmp_path):
    own = ("loss.cls._target_=mine_too.Loss",)
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for content in ("class Loss: ...", "class Loss: pass"):
        (tmp_path / "mine_too.py").write_text(content)
        same._module.cache_clear()
        keys.append(key(*SMALL, *own))
    assert keys[0] != keys[1]
    assert key(*SMALL, "scaling=workers", "scaling.num_workers=[1,2]") is None


def test_images_count_by_their_size_and_time_and_not_by_where_they_lie(tmp_path):
    from ghm.settings import datasets

    write_content(tmp_path / "data")
    data = ("data=coco_folder", f"data.root={tmp_path / 'data'}", "data.allow_overlap=true")
    before = key(*data)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = ("data=coco_folder", f"data.root={tmp_path / 'moved'}", "data.allow_overlap=true")
    assert key(*moved) == before
    image = next((tmp_path / "moved").rglob("*.png"))
    os.utime(image, (1, 1))
    datasets._fingerprint.cache_clear()
    assert key(*moved) != before


def record(tracker: Tracker, folder: str, **finish):
    from ghm.tracking.sender import send

    spool = Spool(Path(folder))
    spool.start(folder, {"ghm.same": "k"})
    spool.log_metrics({"val/AP": 0.25}, 1)
    if finish:
        spool.finish(finish["state"])
    send(Path(folder), tracker)
    return spool


def test_a_run_that_runs_is_waited_for_as_long_as_it_says_something(monkeypatch):
    from sweeps.states import State

    tracker = Tracker.open(None, "ghm", "runs")
    goal = Goal(("val/AP",), ("maximize",))
    ask = Reuse(tracker, goal, lambda params, seed: ["k"])
    assert ask.find({}, None) is None  # nothing is there
    first = record(tracker, "one")
    found = ask.find({}, None)
    assert (found.values, str(found)) == ((), "one")
    assert ask.find({}, None, own=first.key) is None
    now = time.time()
    monkeypatch.setattr(reuse.time, "time", lambda: now + 1000)
    assert ask.find({}, None) is None  # silent for too long
    record(tracker, "two", state=State.PRUNED)
    assert ask.find({}, None) is None
    record(tracker, "three", state=State.DONE)
    assert ask.find({}, None).values == (0.25,)
    assert Reuse(tracker, Goal(("val/AP50",), ("maximize",)), ask.keys).find({}, None) is None  # not recorded
    timed = Goal(("val/AP",), ("maximize",), at_least={"time/images_per_s": 1})
    assert Reuse(tracker, timed, ask.keys).find({}, None) is None
    away = Reuse(Tracker("http://127.0.0.1:9", "ghm"), goal, ask.keys)
    assert away.find({}, None) is None


@pytest.mark.usefixtures("cluster")
def test_what_a_sweep_waits_for_counts_once_it_is_done(ghm, capsys, monkeypatch):
    from threading import Timer

    monkeypatch.setattr("sweeps.controller.ASK", 0.2)
    monkeypatch.setattr("ghm.record.same.key", lambda job, device: "k" if job.settings.seed == 1 else "other")
    tracker = Tracker.open(None, "ghm", "runs")
    spool = record(tracker, "one")

    def end() -> None:
        from ghm.tracking.sender import send
        from sweeps.states import State

        spool.log_params({"model": "retinanet_tiny"})
        spool.log_metrics({"val/AP": 0.5, "val/AP50": 0.6}, 2)
        spool.finish(State.DONE)
        send(Path("one"), tracker)

    timer = Timer(4, end)
    timer.start()
    assert ghm("train", "-m", *SHORT, "seed=1,2", "loss=focal", "hydra.sweeper.study_name=w") in (0, 1)
    timer.join()
    shown = capsys.readouterr().out
    assert shown.count("trial 0 waits for the same training, one\n") == 1
    assert "trial 0 is known from one\n" in shown
    assert begun() == 1
    assert json.loads(children("w")[0].data.tags["sweep.params"]) == {"seed": 1}
