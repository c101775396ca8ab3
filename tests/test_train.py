"""Runs and sweeps from the command line to the tracker, small but real."""

import http.server
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ghm import worker
from ghm.training import checkpoint
from sweeps.states import Answer

SMALL = ("data.train_images=16", "data.val_images=8", "data.image_size=64", "batch_size=8")


def client(runs: str = "runs") -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path(runs).resolve()}/mlflow.db")


def recorded() -> list[Run]:
    """All runs, oldest first."""
    found = client().search_runs([client().get_experiment_by_name("ghm").experiment_id])
    return sorted(found, key=lambda run: run.info.start_time)


def artifacts(run: Run) -> set[str]:
    def below(path: str | None) -> set[str]:
        entries = client().list_artifacts(run.info.run_id, path)
        return {file for entry in entries for file in (below(entry.path) if entry.is_dir else {entry.path})}

    return below(None)


def steps(run: Run, metric: str) -> list[int]:
    return [entry.step for entry in client().get_metric_history(run.info.run_id, metric)]


def test_a_run_records_metrics_config_and_checkpoints(ghm):
    assert ghm("train", "epochs=2", *SMALL, "dir=runs/one") == 0
    (run,) = recorded()
    assert run.info.status == "FINISHED"
    names = {"train/loss", "train/loss_cls", "train/loss_box", "train/ce", "time/images_per_s"}
    names |= {
        f"val/{name}"
        for name in ("AR1", "AR10", "AR100", "ARs", "AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "APs")
    }
    assert names <= run.data.metrics.keys()
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    assert steps(run, "train/loss") == [1, 2]
    chosen = {"loss": "ghm", "loss/cls": "ghm_c", "model": "retinanet_tiny", "data": "shapes", "epochs": "2"}
    assert chosen.items() <= run.data.params.items()
    assert run.data.params["loss.cls.bins"] == "30"
    assert 0 <= float(run.data.params["val/chance_AP50"]) < 0.2
    assert not [key for key in run.data.params if key.endswith("_target_")]
    assert len(run.data.params) < 50
    assert "mlflow.source.git.commit" in run.data.tags
    assert run.data.tags["mlflow.source.name"].startswith("ghm train epochs=2")
    assert [(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs] == [
        ("shapes train", "train"),
        ("shapes val", "val"),
    ]
    assert {"checkpoints/best.pt", "checkpoints/last.pt"} <= artifacts(run)
    assert {"config/config.yaml", "config/overrides.yaml", "config/packages.json"} <= artifacts(run)
    saved = torch.load("runs/one/last.pt", weights_only=True)
    assert saved["epoch"] == 2
    assert saved["model"]["head.classification_head.loss.densities.0.average.counts"].sum() > 0


@pytest.mark.parametrize(
    "options",
    [
        ("amp=bf16", "channels_last=false", "clip_grad=null"),
        ("amp=fp16", "ema=0.99", "keep=1"),
        ("accumulate=4", "schedule=mmdet_1x", "optimizer=sgd"),
        ("data/augment=crop", "data.label_noise=0.2", "loss=focal"),
        ("loss/cls=ghm_c", "loss.cls.scope=level", "loss.cls.levels=3", "loss.box.scope=level", "loss.box.levels=3"),
    ],
    ids=" ".join,
)
def test_every_option_of_training_trains(ghm, options):
    assert ghm("train", "epochs=2", *SMALL, *options, "figures=false", "dir=runs/one") == 0
    (run,) = recorded()
    assert run.info.status == "FINISHED"
    assert math.isfinite(run.data.metrics["train/loss"])
    saved = torch.load("runs/one/last.pt", weights_only=True)
    assert (saved["scaler"] is not None) == ("amp=fp16" in options)
    assert (saved["average"] is not None) == ("ema=0.99" in options)
    assert len(list(Path("runs/one").glob("epoch-*.pt"))) == (1 if "keep=1" in options else 2)


@pytest.mark.slow  # compiling takes most of a minute
def test_a_compiled_backbone_learns_the_same_and_its_checkpoint_is_any_others():
    script = str(Path(sys.executable).parent / "ghm")
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        options = ("optimizer=sgd", "figures=false", f"compile={compiled}", f"dir=runs/{name}")
        subprocess.run([script, "train", "epochs=1", *SMALL, *options], check=True)
    plain, compiled = (torch.load(f"runs/{name}/last.pt", weights_only=True) for name in ("plain", "compiled"))
    assert plain["model"].keys() == compiled["model"].keys()
    one, other = (content["history"][-1]["metrics"]["train/loss"] for content in (plain, compiled))
    assert other == pytest.approx(one, rel=1e-3)


def test_table_7s_network_and_table_3s_rows_train_from_the_command_line(ghm):
    tiny = ("batch_size=2", "data.train_images=2", "data.val_images=2", "data.image_size=64", "figures=false")
    size = ("model.min_size=64", "model.max_size=96")
    for model, loss in (
        ("faster_rcnn_r50", "two_stage"),
        ("faster_rcnn_r50", "ghm"),
        ("stock_faster_rcnn_r50", "stock"),
    ):
        assert ghm("train", "epochs=1", f"model={model}", f"loss={loss}", *tiny, *size) == 0
    for run in recorded():
        names = {"train/loss_cls", "train/loss_box", "train/loss_objectness", "train/loss_rpn_box_reg", "train/ce"}
        assert names <= run.data.metrics.keys()


def test_a_run_continued_equals_one_never_stopped(ghm):
    short = ("schedule=paper", "schedule.milestones=[1]", *SMALL)  # its rate does not depend on the last epoch
    assert ghm("train", "epochs=3", *short, "dir=runs/whole") == 0
    assert ghm("train", "epochs=1", *short, "dir=runs/parts") == 0  # more epochs may be asked for later
    assert ghm("train", "epochs=3", *short, "dir=runs/parts") == 0
    whole, parts = recorded()
    assert steps(parts, "train/loss") == [1, 2, 3]
    for metric in ("train/loss", "train/ce", "val/AP"):
        assert parts.data.metrics[metric] == whole.data.metrics[metric]
    one, other = (torch.load(f"runs/{name}/last.pt", weights_only=True)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_folder_that_holds_a_run_with_other_settings_is_refused(ghm, capsys):
    assert ghm("train", "epochs=1", *SMALL, "dir=runs/one") == 0
    assert ghm("train", "epochs=1", *SMALL, "dir=runs/one", "loss.cls.bins=10") == 2
    assert "holds a run with loss.cls.bins=30, not 10" in capsys.readouterr().err
    (run,) = recorded()
    assert run.info.status == "FINISHED"


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_the_machine_holds_are_refused_before_anything_is_recorded(ghm, capsys):
    small = ("data.train_images=128", "data.val_images=8", "data.image_size=64", "batch_size=64")
    assert ghm("train", "epochs=1", *small, "scaling=workers", "scaling.num_workers=64") == 2
    assert "scaling.num_workers=64: 64 times 1 CPU do not fit" in capsys.readouterr().err
    assert not [path for name in ("run.json", "metrics.jsonl", "mlflow.db") for path in Path().rglob(name)]


def test_a_run_that_diverges_ends_as_failed_with_its_reason(ghm, capsys):
    assert ghm("train", "epochs=1", *SMALL, "optimizer=sgd", "optimizer.lr=1e30", "clip_grad=null") == 1
    (run,) = recorded()
    assert run.info.status == "FAILED"
    assert run.data.tags["sweep.state"] == "failed"
    assert "FloatingPointError" in run.data.tags["error"]
    assert "optimizer.lr" in capsys.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_two_worker_processes_train_one_model_show_its_epochs_and_find_a_database_of_ones_own(ghm, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    assert ghm("train", "epochs=2", *SMALL, "scaling=workers", "scaling.num_workers=2", "dir=runs/two") == 0
    shown = re.findall(r"epoch \d of 2  train/loss", capsys.readouterr().out)
    assert shown == ["epoch 1 of 2  train/loss", "epoch 2 of 2  train/loss"]
    own = MlflowClient(f"sqlite:///{Path.cwd()}/own.db")
    (run,) = own.search_runs([own.get_experiment_by_name("ghm").experiment_id])
    assert run.info.status == "FINISHED"
    for metric in ("train/loss", "val/AP"):
        assert [entry.step for entry in own.get_metric_history(run.info.run_id, metric)] == [1, 2]
    assert run.info.artifact_uri.startswith(Path("runs").resolve().as_uri())
    assert not Path("mlruns").exists()
    saved = torch.load("runs/two/last.pt", weights_only=True)
    # Two steps an epoch of eight images each, four from either worker: the density saw every step.
    assert saved["model"]["head.classification_head.loss.densities.0.average.updates"] == 4


@pytest.mark.usefixtures("cluster")
def test_a_sweep_runs_reports_and_continues(ghm, capsys):
    swept = ("train", "-m", "epochs=1", *SMALL, "loss=focal,cross_entropy", "hydra.sweeper.study_name=two")
    two = (*swept, "hydra.sweeper.n_jobs=2")
    code = ghm(*two)
    shown = capsys.readouterr()
    # One epoch of sixteen images teaches nothing, and the sweep must say so.
    assert code in (0, 1)
    assert (code == 1) == ("no trial beats" in shown.err)
    assert "loss=focal" in shown.out
    assert "MLflow UI: " in shown.out
    parent, *children = recorded()
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["sweep.state"] for run in children} == {"done"}
    assert {json.loads(run.data.tags["sweep.params"])["loss"] for run in children} == {"focal", "cross_entropy"}
    assert {"report/index.html", "report/ranking.csv", "figures/ranking.png"} <= artifacts(parent)
    page = Path("runs/sweeps/two/report/index.html").read_text()
    assert "loss=focal" in page
    for number in ("0000", "0001"):
        assert (Path("runs/sweeps/two") / number / ".hydra" / "overrides.yaml").exists()
    # A warm slot trains what a run of its own does, to the last bit.
    assert ghm("train", "epochs=1", *SMALL, "loss=focal", "dir=runs/alone") == 0
    [slot] = [Path(run.data.tags["dir"]) for run in children if "focal" in run.data.tags["sweep.params"]]
    alone, warm = (checkpoint.read(folder / "last.pt")["model"] for folder in (Path("runs/alone"), slot))
    assert all(torch.equal(value, alone[name]) for name, value in warm.items())
    before = {run.info.run_id for run in recorded()}
    assert ghm(*two) == code
    assert {run.info.run_id for run in recorded()} == before
    assert ghm("report", *swept[2:]) == code


@pytest.mark.usefixtures("cluster")
def test_seeds_of_a_trial_are_runs_below_it_in_mlflow_and_in_the_report(ghm, capsys):
    seeds = ("hydra.sweeper.replicates=2", "seed=3", "hydra.sweeper.study_name=seeds")
    swept = ("train", "-m", "epochs=1", *SMALL, "loss=focal", "figures=false", *seeds)
    assert ghm(*swept) in (0, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "trial 0, seed 4 done: val/AP" in shown
    assert re.search(r"Best: defaults with val/AP \d\.\d+ ± \d\.\d+, mean of 2 seeds\.", shown)
    parent, child, *runs = sorted(recorded(), key=lambda run: len(run.data.tags["ghm.key"]))
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {child.info.run_id}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.data.params["seed"] for run in runs} == {"3", "4"}
    assert child.data.metrics["train/loss"] == pytest.approx(sum(run.data.metrics["train/loss"] for run in runs) / 2)
    assert (child.data.params["loss"], "seed" in child.data.params) == ("focal", False)
    assert {path.name for path in Path("runs/sweeps/seeds/0000").glob("seed-*")} == {"seed-3", "seed-4"}
    assert ghm(*swept, "hydra.sweeper.seed_key=nothing") == 2
    assert "hydra.sweeper.seed_key=nothing: hydra.sweeper.replicates=2 needs a key" in capsys.readouterr().err
    assert ghm(*(word.replace("seed=3", "seed=3,4") for word in swept)) == 2
    assert "seed: is swept, and hydra.sweeper.replicates runs each trial with seeds" in capsys.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_a_sweep_for_accuracy_and_size_within_a_bound_on_speed(ghm, capsys):
    objectives = ("objective=[val/AR100,model/parameters]", "hydra.sweeper.direction=[maximize,minimize]")
    bound = "hydra.sweeper.at_least={time/images_per_s: 0.001}"
    swept = ("train", "-m", "epochs=1", *SMALL, "loss=focal", "seed=0,1", "hydra.sweeper.study_name=both")
    assert ghm(*swept, *objectives, bound) in (0, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "on the Pareto front, which no other trial beats in all objectives: largest val/AR100" in shown
    parent, *children = recorded()
    assert parent.data.tags["sweep.objective"] == "val/AR100,model/parameters"
    assert json.loads(parent.data.tags["sweep.bounds"])["at_least"] == {"time/images_per_s": 0.001}
    assert parent.data.tags["front.trials"]
    sizes = {run.data.metrics["model/parameters"] for run in children}
    assert len(sizes) == 1
    assert 400_000 < sizes.pop() < 800_000
    assert "figures/pareto_model_parameters.png" in artifacts(parent)
    assert ghm(*swept, *objectives, bound.replace("0.001", "0.002")) == 2  # another search


@pytest.mark.parametrize("scaling", ["local", "workers"])
def test_a_trial_learns_of_a_bad_folder_before_anything_is_recorded(ghm, scaling):
    assert ghm("train", "data=coco_folder", "data.root=nowhere", f"scaling={scaling}") == 2
    assert not [path for name in ("*.pt", "run.json", "metrics.jsonl", "mlflow.db") for path in Path().rglob(name)]


def test_a_pruned_trial_is_recorded_as_such(ghm, monkeypatch):
    class Hub:
        """A sweep that wants the trial to stop after its first epoch."""

        report = SimpleNamespace(remote=lambda *said: Answer.PRUNE)

    stub = SimpleNamespace(get_actor=lambda name: Hub, get=lambda said: said, train=ray.train)
    monkeypatch.setattr(worker, "ray", stub)
    assert ghm("train", "epochs=3", *SMALL, "figures=false", "trial.hub=hub", "trial.trial=0") == 0
    (run,) = recorded()
    assert (run.info.status, run.data.tags["sweep.state"]) == ("KILLED", "pruned")
    assert steps(run, "val/AP") == [1]


class Failing(http.server.BaseHTTPRequestHandler):
    """A tracking server that knows the experiment, and then is not what it was: errors, resets, delays in turn."""

    asked = 0

    def do_GET(self):
        if "get-by-name" in self.path and Failing.asked == 0:
            experiment = {"experiment_id": "1", "name": "ghm", "artifact_location": "/", "lifecycle_stage": "active"}
            body = json.dumps({"experiment": experiment}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif Failing.asked % 3 == 0:
            self.send_error(503)
        elif Failing.asked % 3 == 1:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            time.sleep(3)
            self.send_error(500)
        Failing.asked += 1

    do_POST = do_GET

    def log_message(self, *_):
        pass


def test_a_server_that_fails_costs_no_epoch_and_gets_all_when_it_is_back(ghm, monkeypatch, capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        assert ghm("train", "epochs=2", *SMALL, "dir=runs/one") == 0
        server.shutdown()
    assert Failing.asked > 3
    assert checkpoint.read(Path("runs/one/last.pt"))["epoch"] == 2
    assert "MLflow did not take all: the records of 1 runs wait on disk" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert ghm("sync") == 0
    (run,) = recorded()
    assert run.info.status == "FINISHED"
    assert steps(run, "val/AP") == [1, 2]
    assert {"config/config.yaml", "checkpoints/best.pt", "checkpoints/last.pt"} <= artifacts(run)
    assert "epochs" in run.data.params
