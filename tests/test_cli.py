"""Bad input: one line that names key and value, exit code 2, and nothing half done."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient

from ghm.data import coco_folder
from ghm.tracking import Spool, Tracker
from tests.data.folders import drawn, write

SMALL = ("epochs=1", "data.train_images=16", "data.val_images=8")


def unfinished(runs: Path = Path("runs")) -> list[str]:
    """Names of MLflow runs and Optuna trials still marked as running."""
    found = []
    if (runs / "mlflow.db").exists():
        client = MlflowClient(f"sqlite:///{runs.resolve()}/mlflow.db")
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        found += [run.info.run_name for run in client.search_runs(ids) if run.info.status == "RUNNING"]
    if (runs / "optuna.db").exists():
        storage = f"sqlite:///{runs.resolve()}/optuna.db"
        for name in optuna.get_all_study_names(storage):
            trials = optuna.load_study(study_name=name, storage=storage).trials
            found += [f"{name} {trial.number}" for trial in trials if trial.state == optuna.trial.TrialState.RUNNING]
    return found


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "loss.cls.binz=3"], ["loss.cls.binz", "+loss.cls.binz=3"]),
        (["train", "loss=nonsense"], ["loss/nonsense", "focal"]),
        (["train", "nonsense=3"], ["nonsense", "3"]),
        (["train", "loss.cls.bins=0"], ["loss.cls.bins=0", "1 or more"]),
        (["train", "loss.cls.bins=2.5"], ["loss.cls.bins=2.5", "whole number"]),
        (["train", "loss.cls.momentum=1.0"], ["loss.cls.momentum=1.0", "[0, 1)"]),
        (["train", "loss.box.mu=0"], ["loss.box.mu=0", "above 0"]),
        (["train", "loss.cls.density=exactly"], ["loss.cls.density=exactly", "'exact'"]),
        (["train", "loss=focal", "loss.cls.gamma=-1"], ["loss.cls.gamma=-1", "0 or more"]),
        (["train", "loss.prior=1"], ["loss.prior=1", "(0, 1)"]),
        (["train", "epochs=0"], ["epochs=0", "at least 1"]),
        (["train", "epochs=many"], ["epochs=many", "at least 1"]),
        (["train", "epochs=true"], ["epochs=True", "whole number"]),
        (["train", "seed=abc"], ["seed=abc", "whole number"]),
        (["train", "clip_grad=-1"], ["clip_grad=-1", "above 0"]),
        (["train", "device=gpu"], ["device=gpu", "auto"]),
        (["train", "amp=fp8"], ["amp=fp8", "bf16"]),
        (["train", "ema=2"], ["ema=2", "(0, 1)"]),
        (["train", "keep=0"], ["keep=0", "at least 1"]),
        (["train", "accumulate=3"], ["batch_size=16", "accumulate=3"]),
        (["train", "accumulate=0"], ["accumulate=0", "at least 1"]),
        (["train", "lr_batch=0"], ["lr_batch=0", "above 0"]),
        (["train", "compile=maybe"], ["compile=maybe", "true or false"]),
        (["train", "model.max_size=-5"], ["model.max_size=-5", "above 0"]),
        (["train", "model=retinanet_r50", "model.min_size=big"], ["model.min_size=big", "pixels"]),
        (["train", "model=retinanet_r50", "model.weights=nowhere.pt"], ["model.weights=nowhere.pt", "IMAGENET1K_V1"]),
        (["train", "model=stock_faster_rcnn_r50"], ["loss=stock"]),
        (["train", "loss=stock"], ["loss=stock"]),
        (["train", "loss=two_stage"], ["softmax", "model=faster_rcnn_r50"]),
        (["train", "data.label_noise=2"], ["data.label_noise=2", "[0, 1]"]),
        (["train", "data/augment=blur"], ["data/augment/blur", "flip"]),
        (["train", "data=coco2017", "data.root=empty"], ["empty", "instances_train2017.json"]),
        (["train", "loss.prior=abc"], ["loss.prior=abc", "(0, 1)"]),
        (["train", "scaling.num_workers=-1"], ["scaling.num_workers=-1", "must be a whole number", "[1,4]"]),
        (["train", "scaling=workers", "scaling.num_workers=[2,1]"], ["scaling.num_workers=[2, 1]", "[1,4]"]),
        (["train", "scaling=workers", "scaling.num_workers=[1,2,4]"], ["scaling.num_workers=[1, 2, 4]", "[1,4]"]),
        (["train", "scaling=workers", "scaling.num_workers=[1,3]"], ["batch_size=16", "scaling.num_workers=3"]),
        (["train", "loss.cls=null"], ["loss.cls=null", "must be chosen"]),
        (["train", "optimizer.lr=abc"], ["optimizer.lr=abc"]),
        (["train", "objective=val/mAP"], ["objective=val/mAP", "val/AP"]),
        (["train", "optimizer.lr=-1"], ["optimizer.lr=-1", "learning rate"]),
        (["train", "data.train_images=0"], ["data.train_images=0", "at least 1"]),
        (["train", "data=coco_folder"], ["data.root=null", "data.root=PATH"]),
        (["train", "data=coco_folder", "data.root=empty"], ["data.root=/", "/empty: ", "instances_train.json"]),
        (["train", "data=coco_folder", "data.root=holes"], ["file_name='gone.jpg'", "image 7"]),
        (["train", "scaling=workers", "batch_size=3"], ["batch_size=3", "scaling.num_workers=2"]),
        (["train", "tracking=server"], ["MLFLOW_TRACKING_URI"]),
        (["train", "-m", "loss.cls.binz=1,2"], ["loss.cls.binz"]),
        (["train", "-m", "loss.cls.bins=10,0"], ["loss.cls.bins=0", "1 or more"]),
        (["train", "-m", "loss=ghm,nonsense"], ["loss/nonsense"]),
        (["train", "-m", "loss=focal", "loss.cls.gamma=interval(3,1)"], ["loss.cls.gamma=interval(3,1)"]),
        (["train", "-m", "+sweep=nonsense"], ["sweep/nonsense", "demo"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0", "at least 1"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.n_jobs=0"], ["hydra.sweeper.n_jobs=0", "at least 1"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.direction=up"], ["hydra.sweeper.direction=up", "maximize"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.storage=nowhere"], ["hydra.sweeper.storage=nowhere"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.study_name='a/b'"], ["hydra.sweeper.study_name=a/b"]),
        *(
            (["train", "-m", "seed=1,2", f"hydra.sweeper.study_name='{name}'"], [f"hydra.sweeper.study_name={name}"])
            for name in ("..", ".", ".hidden", "a.", " a")
        ),
        *(
            (
                ["train", "-m", "seed=1,2", f"hydra.sweeper.max_failure_rate={rate}"],
                [f"max_failure_rate={rate}", "[0, 1]"],
            )
            for rate in (-0.1, 1.5, "half")
        ),
        (["train", "-m", "seed=1,2", "scaling.slot.cpus=-1"], ["scaling.slot.cpus", "-1", "at least 0"]),
        (["train", "scaling=workers", "scaling.gpus=-1"], ["scaling.gpus=-1", "at least 0"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.sampler._target_=optuna.samplers.No"], ["sampler._target_", ".No"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.pruner._target_=optuna.pruners.No"], ["pruner._target_", ".No"]),
        (["train", "-m", "seed=1,2", "+hydra.sweeper.sampler.warmth=3"], ["TPESampler", "warmth"]),
        (["train", "-m", "seed=1,2", "hydra.sweeper.sampler=random"], ["hydra/sweeper/sampler=random"]),
        (["train", "loss.cls=focal"], ["loss.cls=focal", "loss/cls=focal"]),
        (["train", "data.augment=color"], ["data.augment=color", "data/augment=color"]),
        (["train", "-m", "loss.box=ghm_r,asl1"], ["loss.box=ghm_r", "loss/box=ghm_r"]),
        (
            ["train", "-m", "+hydra.sweeper.params.seed=[1,2,3]"],
            ["hydra.sweeper.params.seed=[1, 2, 3]", "choice(1,2,3)"],
        ),
        (["train", "-m", "seed=1,2", "seed=3"], ["seed=3", "given twice", "seed=1,2"]),
        (["train", "epochs=1", "+epochs=2"], ["epochs=2", "given twice"]),
        (["train", "--cgf", "job"], ["--cgf"]),
        (["train", "--experimental-rerun", "config.pickle"], ["--experimental-rerun", "overrides"]),
        (["train", "data=coco_folder", "data.root=2026"], ["/2026: no annotations", "data.root"]),
        (
            ["train", "data=coco_folder", "data.root=holes", "data.val_share=0.2"],
            ["data.val_share", "instances_val.json"],
        ),
        (["train", "runs=/dev/null/x"], ["/dev/null/x"]),
        (["train", "-m", "seed=1,2", "runs=/dev/null/x"], ["runs=/dev/null/x", "GHM_RUNS"]),
        (["report", "hydra.sweeper.study_name=unheard"], ["hydra.sweeper.study_name=unheard"]),
        (["fly"], ["fly", "train"]),
    ],
    ids=lambda value: " ".join(value)[:60] if value and isinstance(value[0], str) else None,
)
def test_bad_input_is_one_line_that_names_key_and_value(arguments, named, ghm, capsys):
    Path("empty").mkdir()
    _folder_with_a_missing_image(Path("holes"))
    assert ghm(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    for word in named:
        assert word in lines[0]
    assert not unfinished()
    assert not Path("runs/optuna.db").exists()


def _folder_with_a_missing_image(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = {
        "images": [{"id": 7, "file_name": "gone.jpg", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def test_an_unreachable_tracking_server_is_named_within_seconds(ghm, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert ghm("train", *SMALL) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9" in line
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.pt"))


def test_a_password_in_an_address_is_not_shown(ghm, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    assert ghm("train", *SMALL) == 2
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err
    assert "http://***@127.0.0.1:9" in shown.err


def test_a_traceback_is_shown_when_asked_for(ghm, capsys, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert ghm("train", "loss.cls.bins=0") == 2
    assert "Traceback" in capsys.readouterr().err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_help_lists_the_verbs(ghm, capsys):
    assert ghm("--help") == 0
    shown = capsys.readouterr().out
    for verb in ("train", "train -m", "report"):
        assert f"ghm {verb}" in shown


def test_hydras_own_flags_work(ghm, capsys):
    assert ghm("train", "--cfg", "job", "loss=focal") == 0
    assert "ghm.losses.FocalLoss" in capsys.readouterr().out


def test_the_console_script_exits_with_the_same_code():
    script = Path(sys.executable).parent / "ghm"
    done = subprocess.run([script, "train", "loss.cls.bins=0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ghm: loss.cls.bins=0")


def test_runs_that_begin_together_have_folders_of_their_own(ghm, capsys):
    folders = set()
    for _ in range(2):
        assert ghm("train", "--cfg", "job", "--resolve") == 0
        folders |= {line for line in capsys.readouterr().out.splitlines() if line.startswith("dir:")}
    assert len(folders) == 2


@pytest.mark.parametrize("mode", [(), ("-m", "seed=1,2")])
def test_a_folder_that_cannot_be_written_is_one_line_at_once(mode):
    """Not even root may write: without the right to pass over permissions."""
    limits = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if limits and (shutil.which("setpriv") is None or subprocess.run([*limits, "true"], check=False).returncode):
        pytest.skip("root may write everywhere, and there is no setpriv to forbid it")
    Path("runs").mkdir(mode=0o555)
    command = [*limits, sys.executable, "-m", "ghm", "train", *mode, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ghm: ")]
    assert "runs" in line
    assert "Permission denied" in line
    assert "Traceback" not in done.stderr


def test_a_study_of_another_optuna_is_one_line(ghm, capsys):
    Path("runs").mkdir()
    optuna.create_study(storage="sqlite:///runs/optuna.db", study_name="old")
    with sqlite3.connect("runs/optuna.db") as database:
        database.execute("alter table trials drop column number")
    assert ghm("train", "-m", "seed=1,2", *SMALL) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "hydra.sweeper.storage=sqlite:///" in line
    assert "another version of Optuna" in line


def test_an_error_that_nobody_foresaw_is_one_line_too(ghm, capsys, monkeypatch):
    def broken(cfg):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("ghm.verbs.train.train", broken)
    assert ghm("train") == 1
    assert capsys.readouterr().err == "ghm: ZeroDivisionError: by nothing; HYDRA_FULL_ERROR=1 shows where\n"


def test_a_division_of_one_file_is_recorded_with_the_run(ghm):
    write(Path("one"), "annotations/instances_default.json", *drawn("train", 10), "images")
    arguments = ("data=coco_folder", "data.root=one", "data.val_share=0.2", "epochs=1", "batch_size=4", "figures=false")
    assert ghm("train", *arguments, "dir=run") == 0
    tracker = Tracker.open(None, "ghm", "runs")
    run = tracker.find(Spool(Path("run")).key)
    division = json.loads(Path(tracker.client.download_artifacts(run.info.run_id, "config/division.json")).read_text())
    assert len(division["train"]) + len(division["val"]) == 10
    val = coco_folder("one", val_share=0.2).val
    assert division["val"] == [image["file_name"] for image in val.coco.dataset["images"]]
    assert (run.data.params["data.val_share"], run.data.params["data.split_seed"]) == ("0.2", "0")


def test_a_closed_terminal_ends_a_sweep_orderly_and_more_signals_change_nothing():
    script = Path(sys.executable).parent / "ghm"
    command = [script, "train", "-m", "epochs=500", *SMALL[1:], "loss=focal,ghm", "hydra.sweeper.study_name=s"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not list(Path().rglob("epoch-*.pt")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGHUP)
        for _ in range(30):
            process.send_signal(random.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            time.sleep(0.01)
        said = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert said[-1].startswith("ghm: interrupted; the same command continues a sweep")
    assert unfinished() == []
    assert [Spool(path.parent).state() for path in Path().rglob("s/metrics.jsonl")] == ["queued"]
    assert {Spool(path.parent).state() for path in Path().rglob("s/0*/metrics.jsonl")} == {"queued"}
