"""The benchmark runs and measures what it says; how fast things are is not a test's to decide."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ghm.losses import GHMC
from tests.bench.yardsticks import RegionLoop, plain
from tests.losses.gradient import value_and_gradient

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_prints_a_ratio_for_every_target():
    command = [sys.executable, "-m", "tests.bench.losses", "--elements", "20000", "--rounds", "1", "--no-compile"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^\| (.*) \| ([\d.]+|nan) \| ([<>]= [\d.]+) \|$", printed, re.MULTILINE)
    assert len(rows) == 7
    assert {label for label, ratio, _ in rows if ratio == "nan"} == {"GHM-C compiled against BCE"}
    assert all(float(ratio) > 0 for _, ratio, _ in rows if ratio != "nan")


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
