"""`ghm reproduce`: the same run again from its record, from a folder or from MLflow."""

import json
import shutil
from pathlib import Path

import pytest

from ghm import provenance
from ghm.tracking import Spool, Tracker
from tests.verbs.conftest import SMALL


@pytest.fixture
def copied(trained) -> Path:
    """The record of a run, to be changed."""
    Path("copy").mkdir()
    shutil.copy(trained / "metrics.jsonl", "copy/metrics.jsonl")
    return Path("copy")


def change(folder: Path, old: str, new: str) -> None:
    path = folder / "metrics.jsonl"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_comes_to_the_same_again_to_the_last_bit(trained, ghm, capsys):
    assert ghm("reproduce", str(trained), "dir=again") == 0
    shown = capsys.readouterr().out
    assert "Equal to the last bit: 2 epochs" in shown
    assert "Not as it was" not in shown
    before, now = (json.loads((folder / "run.json").read_text()) for folder in (trained, Path("again")))
    assert before["fingerprint"] == now["fingerprint"]


@pytest.mark.usefixtures("cluster")
def test_a_trial_of_a_sweep_is_reproduced_by_its_id_as_a_run_of_its_own(ghm, capsys):
    swept = ("train", "-m", *SMALL[1:], "epochs=1", "loss=focal", "figures=false", "hydra.sweeper.study_name=s")
    assert ghm(*swept) in (0, 1)
    tracker = Tracker.open(None, "ghm", "runs")
    [trial] = tracker.children(tracker.sweeps("s")[0].info.run_id)
    assert ghm("reproduce", trial.info.run_id, "dir=again") == 0
    assert "Equal to the last bit: 1 epochs" in capsys.readouterr().out
    again = tracker.find(Spool(Path("again")).key)
    assert "mlflow.parentRunId" not in again.data.tags


def test_what_is_not_as_it_was_is_named_and_what_came_of_it(trained, copied, ghm, capsys, monkeypatch):
    change(copied, r"\nseed: 0", r"\nseed: 1")
    packages = provenance.packages()
    monkeypatch.setattr(provenance, "packages", lambda: packages | {"torch": "9.9"})
    assert ghm("reproduce", "copy", "dir=again") == 1
    shown = capsys.readouterr()
    assert f"Not as it was: torch 9.9, was {packages['torch']}" in shown.out
    assert "/copy: is not reproduced: train/" in shown.err
    assert "after epoch 1, was" in shown.err
    assert "more values; not as it was: torch 9.9" in shown.err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ghm.losses.GHMC", "os.system"),
        ("ghm.losses.GHMC", "ghm.verbs.submit.main"),
        ("ghm.losses.GHMC", "torch.load"),
        ("ghm.losses.GHMC", "torch.hub.load"),
        ("torch.optim.AdamW", "torch.optim.sys.exit"),
        ("torch.optim.AdamW", "torch.optim.lr_scheduler.partial"),
        ("torchvision.transforms.v2.RandomHorizontalFlip", "torchvision.io.read_file"),
        (r"\nseed: 0", r"\nseed: ${oc.env:HOME}"),
    ],
)
def test_a_record_of_others_calls_nothing_but_known_parts(copied, ghm, capsys, old, new):
    change(copied, old, new)
    assert ghm("reproduce", "copy", "dir=again") == 2
    assert "is no part of ghm, torch or torchvision; if you trust it" in capsys.readouterr().err
    assert not Path("again/metrics.jsonl").exists()


def test_a_config_of_others_makes_no_python_object(copied, ghm, capsys):
    change(copied, r"\nseed: 0", r"\nseed: !!python/object/apply:os.getcwd []")
    assert ghm("reproduce", "copy") == 2
    assert "run=" in capsys.readouterr().err


def test_a_loss_of_ones_own_is_used_once_its_module_is_trusted(copied, ghm, capsys, monkeypatch):
    Path("own_losses.py").write_text("from ghm.losses import GHMC as Own\n")
    monkeypatch.syspath_prepend(".")
    change(copied, "ghm.losses.GHMC", "own_losses.Own")
    assert ghm("reproduce", "copy", "dir=again") == 2
    assert "loss.cls._target_=own_losses.Own" in capsys.readouterr().err
    assert ghm("reproduce", "copy", "dir=again", "trust=[own_losses]") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run=null: names no run"),
        (["nowhere"], "nowhere: holds no run; give the folder of one, or the id of its MLflow run"),
        (["0" * 32], "holds no run of this id"),
    ],
)
def test_what_is_no_run_is_named(ghm, capsys, words, said):
    assert ghm("reproduce", *words) == 2
    assert said in capsys.readouterr().err
