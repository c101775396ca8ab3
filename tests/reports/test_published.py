"""The paper's tables beside trials whose numbers are known."""

import csv
import json
import math
from pathlib import Path

import hydra
import pytest
import yaml

from ghm.reports import published, sweep
from ghm.settings.paths import CONF
from ghm.tracking import Sender, Spool, Tracker

TABLES = yaml.safe_load(published.TABLES.read_text())
AP = {"cross_entropy_paper": [0.30, 0.32, 0.31], "focal": [0.40], "ghm_c_paper": [0.36, 0.36, 0.39]}


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> sweep.SweepResult:
    folder = tmp_path_factory.mktemp("table4")
    tracker = Tracker.open(None, "test", str(folder))
    top = Spool(folder)
    top.start("table4", {"sweep.name": "table4", "sweep.kind": "sweep", "sweep.objective": "val/AP"}, key="t")
    spools = [top]
    points = [(loss, seed, value) for loss, values in AP.items() for seed, value in enumerate(values)]
    for number, (loss, seed, value) in enumerate([*points, ("focal", 1, None)]):
        run = Spool(folder / str(number))
        tags = {"sweep.trial": number, "sweep.params": json.dumps({"loss": loss, "seed": seed})}
        run.start(f"loss={loss} #{number}", tags, "t", f"t-{number:04d}")
        run.log_params({"val/chance_AP50": 0.01, "batch_size": 16})
        if value is not None:
            metrics = {"val/AP": value, "val/AP50": 2 * value, "val/AP75": value, "time/images_per_s": 32.0}
            run.log_metrics(metrics, step=1)
        run.finish("done" if value is not None else "failed")
        spools.append(run)
    Sender(tracker, lambda: [spool.folder for spool in spools]).once()
    return sweep.load(tracker, "table4")


def test_a_row_is_the_papers_and_our_mean_with_its_interval_over_seeds(result):
    table = published.table(4, result)
    rows = {row.name: row for row in table.rows}
    mean, half = rows["CE"].ours[0].mean, rows["CE"].ours[0].half
    assert mean == pytest.approx(31.0)
    assert half == pytest.approx(4.30265 * 1.0 / math.sqrt(3), rel=1e-4)  # t of two degrees of freedom
    assert rows["FL"].ours[0] == published.Measured(pytest.approx(40.0), None)  # the failed seed is none
    assert rows["OHEM"].ours == [None] * 6
    assert rows["CE"].ours[3] is None  # images without small objects
    lines = table.lines()
    assert lines[0] == ["CE", "paper", "", "28.6", "43.3", "30.7", "11.4", "30.7", "40.7"]
    assert lines[1][:5] == ["", "ours", "3", "31.0 ± 2.5", "62.0 ± 5.0"]
    assert lines[2][:4] == ["", "diff", "", "+2.4"]
    assert [line[0] for line in lines if line[0]] == ["CE", "OHEM", "FL", "GHM-C"]
    assert lines[3] == ["OHEM", "paper", "", "31.1", "47.2", "33.2", "", "", ""]


def test_the_files_name_the_source_and_link_to_the_runs(result):
    table = published.table(4, result)
    told = table.markdown("http://server/#/runs/")
    assert "Li, Liu and Wang, AAAI 2019, Table 4" in told
    ghm = result.trials[result.trials["loss"] == "ghm_c_paper"]["run_id"]
    assert all(f"](http://server/#/runs/{run})" in told for run in ghm)
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert rows[0] | {"interval": ""} == {
        "row": "CE",
        "column": "AP",
        "paper": "28.6",
        "ours": "31.0",
        "interval": "",
        "seeds": "3",
        "source": TABLES[4]["source"],
    }


def test_seconds_an_iteration_follow_from_images_a_second(result):
    [row, *_] = published.table(2, result).rows
    assert row.ours[1].mean == pytest.approx(0.5)
    assert published.table(2, result).lines()[1][4] == "0.500 ± 0.000"


def test_a_table_that_the_paper_does_not_have_is_named(result):
    with pytest.raises(ValueError, match=r"^table=8: must be one of 1, 2, 3, 4, 5, 6, 7"):
        published.table(8, result)


@pytest.mark.parametrize("number", TABLES)
def test_each_published_row_is_one_of_its_sweep(number):
    """Its numbers stand under the paper's columns, and its settings are among those that the sweep goes through."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [f"+sweep=table{number}"], return_hydra_config=True)
    assert config.table == number
    params = config.hydra.sweeper.params
    for row in TABLES[number]["rows"]:
        assert len(row["values"]) == len(TABLES[number]["columns"])
        for key, value in row.get("settings", {}).items():
            assert str(value) in params[key].removeprefix("choice(").removesuffix(")").split(",")
            folder = CONF / key
            assert not folder.is_dir() or Path(folder / f"{value}.yaml").exists()
