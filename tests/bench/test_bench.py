"""The benchmark runs and measures what it says; how fast things are is not a test's to decide."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch

from ghm.losses import GHMC
from ghm.settings import own_ranges
from ghm.settings.parts import build
from ghm.settings.paths import CONF
from tests.bench import evidence
from tests.bench.yardsticks import RegionLoop, plain
from tests.coco import write_folder
from tests.losses.gradient import value_and_gradient

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_prints_a_ratio_for_every_target():
    printed = _printed("tests.bench.losses", "--elements", "20000", "--rounds", "1", "--no-compile")
    rows = re.findall(r"^\| (.*) \| ([\d.]+|nan) \| ([<>]= [\d.]+) \|$", printed, re.MULTILINE)
    assert len(rows) == 7
    assert {label for label, ratio, _ in rows if ratio == "nan"} == {"GHM-C compiled against BCE"}
    assert all(float(ratio) > 0 for _, ratio, _ in rows if ratio != "nan")


def test_table_2_is_measured_beside_the_papers_seconds():
    printed = _printed("tests.bench.table2", "--rounds", "1", "--device", "cpu")
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|$", printed, re.MULTILINE)
    assert [(name, seconds) for name, seconds, *_ in rows] == [
        ("standard CE", "0.566"),
        ("GHM-C Standard", "13.675"),
        ("GHM-C RU", "0.824"),
    ]
    assert all(float(ours) > 0 for _, _, ours, _ in rows)


def test_the_training_benchmark_prints_a_value_for_every_target():
    printed = _printed("tests.bench.training", "--images", "32", "--rounds", "1")
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \| ([<>]= [\d.]+) \|$", printed, re.MULTILINE)
    assert len(rows) == 6
    shares = {label: float(value) for label, value, _ in rows if label.startswith("share")}
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares.values())
    assert all(float(value) > 0 for label, value, _ in rows)


@pytest.mark.slow  # half a minute, for what `make bench` runs
def test_the_benchmark_of_sweeps_prints_what_a_trial_costs_and_where():
    printed = _printed("tests.bench.overhead", "--trials", "4", "--rounds", "1", "--turns", "3", "--alone")
    rows = dict(re.findall(r"^\| (ghm|Optuna alone) \| (\d+ .*) \|$", printed, re.MULTILINE))
    in_all, *parts = (float(value) for value in rows["ghm"].split(" | "))
    assert in_all > 0
    assert len(parts) == 5
    assert all(part > 0 for part in parts)
    assert "Optuna alone" in rows
    assert re.search(r"^\| two slots, .* against ideal \| [12]\.\d{3} \| <= 1\.050 \|$", printed, re.MULTILINE)


@pytest.mark.slow  # a minute, for a script that is run by hand where a GPU is
def test_the_gpu_script_runs_whole_on_a_processor():
    write_folder(Path("set"), images=3)
    small = ("--size", "64", "--images", "2", "--rounds", "1", "--epochs", "1", "--processes", "1")
    few = ("--seeds", "2", "--rates", "1e-4", "3e-4", "--losses", "focal", "ghm", "--data-size", "64", "--jobs", "2")
    where = ("--device", "cpu", "--data", str(Path("set").resolve()), "--elements", "20000", "--no-compile")
    printed = _printed("tests.bench.gpu", *where, *small, *few)
    assert len(re.findall(r"^\| .* \| [\d.]+ \| [<>]= [\d.]+ \|$", printed, re.MULTILINE)) == 6
    assert len(re.findall(r"^\| (ours|torchvision) \| [\d.]+ \| [\d.]+ \|$", printed, re.MULTILINE)) == 2
    assert re.search(r"[\d.]+% of the measured", printed)
    assert len(re.findall(r"^\| (focal|ghm) \|( \d\.\d{3} \|){2}$", printed, re.MULTILINE)) == 2
    assert (
        len(re.findall(r"^\| (focal|ghm) \| 2 \| 0\.000[13] \| \d\.\d{3} ± \d\.\d{3} \|", printed, re.MULTILINE)) == 2
    )
    assert re.search(r"^\| focal - ghm \| [+-]\d\.\d{3} ", printed, re.MULTILINE)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ghm_c", "ghm"])
def test_the_losses_of_the_gpu_script_are_those_of_conf(name):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"loss={name}", "strength_warmup=7"])
    own_ranges.take(cfg)
    for part, make in zip(("cls", "box"), evidence.LOSSES[name], strict=True):
        assert _settings(make(7)) == _settings(build(cfg, f"loss.{part}")), part


def _settings(loss):
    """Of a loss and what it is made of."""
    return [
        (type(module), {key: value for key, value in vars(module).items() if key[0] != "_"})
        for module in loss.modules()
    ]


def _printed(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("bins", [1, 10, 30])
def test_the_yardsticks_compute_the_loss_that_they_are_the_measure_of(bins):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator) * 2 - 2
    y = (torch.rand(400, generator=generator) < 0.1).float()
    expected = value_and_gradient(GHMC(bins=bins, momentum=0.0), x, y)
    yardsticks = (RegionLoop(bins, momentum=0.0), lambda x, y: plain(x, y, bins))
    for yardstick in yardsticks:
        for got, wanted in zip(value_and_gradient(yardstick, x, y), expected, strict=True):
            torch.testing.assert_close(got, wanted)
