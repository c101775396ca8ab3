"""A Hydra program that is not ours, swept: docs/any_app.py, as its page of the docs runs it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from ghm import report
from ghm.tracking import Tracker

APP = Path(__file__).resolve().parents[2] / "docs" / "any_app.py"
SWEPT = ("-m", "hydra/sweeper=ghm", "x=interval(-5,5)", "y=choice(0,1)", "hydra.sweeper.direction=minimize")
SMALL = ("hydra.sweeper.n_trials=6", "hydra.sweeper.study_name=s", "hydra.sweeper.seed=1")


@pytest.fixture(autouse=True)
def _on_the_ray_of_the_session(cluster, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster)


def command(*words: str, app: Path = APP) -> list[str]:
    return [sys.executable, str(app), *words]


def run(*words: str, app: Path = APP, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words, app=app), env=os.environ | environment, capture_output=True, text=True)


def study() -> optuna.Study:
    return optuna.load_study(study_name="s", storage="sqlite:///multirun/optuna.db")


def test_the_example_has_no_more_than_25_lines_of_code():
    lines = [line for line in APP.read_text().splitlines() if line.strip()]
    assert len(lines) <= 25
    assert sum("ghm" in line for line in lines[1:]) == 2  # its import and its report
    assert APP.read_text() in (APP.parent / "sweeps.md").read_text()


def test_without_a_sweep_nobody_hears_a_report():
    assert report(1, 0.5) is None
    ended = run("x=1")
    assert ended.returncode == 0, ended.stderr


def test_it_is_swept_pruned_continued_and_recorded_as_hydra_does():
    worst = 12.0  # a bound, and no comparison: two slots end in any order
    pruned = ("hydra/sweeper/pruner=threshold", f"hydra.sweeper.pruner.upper={worst}")
    asked = (*SWEPT, *SMALL, "hydra.sweeper.n_jobs=2", *pruned, "steps=20")
    ended = run(*asked)
    assert ended.returncode == 0, ended.stderr
    trials = study().trials
    assert len(trials) == 6
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert (trial.state.name == "PRUNED") == (trial.intermediate_values[5] > worst)
    for trial in trials:
        x, y = trial.params["x"], trial.params["y"]
        assert trial.value == pytest.approx((x - 2) ** 2 + y + 1 / len(trial.intermediate_values))
        folder = Path("multirun/s") / f"{trial.number:04d}"
        assert OmegaConf.load(folder / ".hydra" / "config.yaml").x == x
        assert OmegaConf.load(folder / ".hydra" / "overrides.yaml") == ["steps=20", f"x={x}", f"y={y}"]
        assert OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.job.num == trial.number
    best = OmegaConf.load("multirun/s/optimization_results.yaml")
    assert best.best_value == study().best_value
    assert f"best_value: {best.best_value}" in ended.stdout
    assert not list(Path().rglob("mlflow.db"))
    again = run(*asked)
    assert again.returncode == 0
    assert "started" not in again.stdout
    more = run(*(word.replace("n_trials=6", "n_trials=7") for word in asked))
    assert more.stdout.count("started") == 1


def test_killed_anywhere_it_ends_with_the_points_of_one_that_never_was():
    asked = (*SWEPT, *SMALL, "steps=40")
    assert run(*asked).returncode == 0
    points = [trial.params for trial in study().trials]
    shutil.rmtree("multirun")
    process = subprocess.Popen(command(*asked), start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not Path("multirun/s/0001").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run(*asked, "hydra.sweeper.lease=1").returncode == 0
    assert [trial.params for trial in study().trials] == points


def test_given_an_address_its_trials_are_in_mlflow_with_curves():
    where = "hydra.sweeper.tracking.uri=sqlite:///multirun/mlflow.db"
    assert run(*SWEPT, *SMALL, where).returncode == 0
    tracker = Tracker.open("sqlite:///multirun/mlflow.db", "any_app", "multirun")
    [parent] = tracker.sweeps("s")
    assert parent.info.status == "FINISHED"
    runs = tracker.children(parent.info.run_id)
    assert len(runs) == 6
    for one in runs:
        trial = study().trials[int(one.data.tags["sweep.trial"])]
        assert (one.info.status, one.data.params["x"]) == ("FINISHED", str(trial.params["x"]))
        assert tracker.history(one.info.run_id, "value") == list(trial.intermediate_values.items())


def test_a_dry_run_shows_the_points_and_starts_nothing():
    finite = run("-m", "hydra/sweeper=ghm", "x=1,2", "y=choice(0,1)", "hydra.sweeper.dry_run=true")
    assert finite.stdout.splitlines() == ["4 trials:", "  0: x=1 y=0", "  1: x=1 y=1", "  2: x=2 y=0", "  3: x=2 y=1"]
    endless = run(*SWEPT, *SMALL, "hydra.sweeper.dry_run=true", "hydra.sweeper.n_jobs=2")
    assert endless.stdout.startswith("6 trials, of which the first 2 would be")
    assert not Path("multirun/optuna.db").exists()
    wrong = run("-m", "hydra/sweeper=ghm", "z=1,2", "hydra.sweeper.dry_run=true")
    assert wrong.returncode == 2
    assert "ghm: Could not override 'z'." in wrong.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["hydra.sweeper.n_trials=0"], 2, "ghm: hydra.sweeper.n_trials=0: must be a whole number"),
        (["hydra/sweeper/pruner=threshold", "+hydra.sweeper.pruner.warmth=1"], 2, "ThresholdPruner: cannot be made"),
        (["steps=0"], 1, "ghm: 6 of 6 points are missing"),  # then the task raises UnboundLocalError
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(words, code, said):
    asked = [
        word for word in ("x=1,2,3", "y=0,1", *SMALL) if word.split("=")[0] not in {w.split("=")[0] for w in words}
    ]
    ended = run("-m", "hydra/sweeper=ghm", *asked, "hydra.sweeper.max_failure_rate=1", *words)
    assert ended.returncode == code, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("ghm:")]
    assert said in line


TWO = """
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path=None)
def task(cfg):
    return cfg.x, (cfg.x - 2) ** 2

task()
"""


def test_a_program_of_two_objectives_keeps_its_front(tmp_path):
    app = tmp_path / "two.py"
    app.write_text(TWO)
    ended = run("-m", "hydra/sweeper=ghm", "+x=0,1,2,3", "hydra.sweeper.direction=[minimize,minimize]", *SMALL, app=app)
    assert ended.returncode == 0, ended.stderr
    solutions = OmegaConf.load("multirun/s/optimization_results.yaml").solutions
    assert [solution["values"] for solution in solutions] == [[0.0, 4.0], [1.0, 1.0], [2.0, 0.0]]
