"""A run that is killed ends where one that never was ends: bit for bit. Where it may be: tests/test_commit.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ghm.training import checkpoint

# A rate that depends on the step, an average of the weights, steps in parts, flips, and sampling that draws.
RUN = (
    *("train", "epochs=3", "data.train_images=14", "data.val_images=4", "data.image_size=64", "batch_size=4"),
    *("accumulate=2", "ema=0.9", "strength_warmup=5", "device=cpu"),
)
NUMBERS = ("train/loss", "train/ce", "train/lr", "val/AP", "val/AR100")


def command(folder, *more):
    return [str(Path(sys.executable).parent / "ghm"), *RUN, *more, f"dir={folder}"]


def run_and_kill(folder, after, delay, *more):
    """Kill -9, with all its processes, `delay` seconds after the file `after` has appeared."""
    process = subprocess.Popen(command(folder, *more), start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / after).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(command(folder), check=True, cwd=folder.parent)
    return checkpoint.read(folder / "last.pt")


def test_a_run_killed_while_it_trains_ends_where_an_unbroken_one_does(unbroken, tmp_path):
    folder = tmp_path / "run"
    killed = run_and_kill(folder, "epoch-0001.pt", delay=0.1)
    assert killed == -signal.SIGKILL
    subprocess.run(command(folder), check=True)
    ended = checkpoint.read(folder / "last.pt")
    for part in ("model", "average"):
        assert ended[part].keys() == unbroken[part].keys()
        assert all(torch.equal(value, unbroken[part][name]) for name, value in ended[part].items())
    for name in NUMBERS:
        assert ended["history"][-1]["metrics"][name] == unbroken["history"][-1]["metrics"][name], name
    assert ended["epoch"] == 3


def test_a_damaged_newest_checkpoint_costs_its_epoch_alone(unbroken, tmp_path, ghm, capsys):
    folder = tmp_path / "run"
    assert ghm(*RUN, f"dir={folder}") == 0
    (folder / "epoch-0003.pt").write_bytes(b"torn")
    (folder / "last.pt").unlink()
    assert ghm(*RUN, f"dir={folder}") == 0
    assert "epoch-0003.pt: cannot be read" in capsys.readouterr().out
    again = checkpoint.read(folder / "last.pt")
    assert again["epoch"] == 3
    assert all(torch.equal(value, unbroken["model"][name]) for name, value in again["model"].items())
