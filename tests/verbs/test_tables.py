"""The paper's tables, from the sweep to what is printed, with a handful of images."""

from pathlib import Path

import pytest
import yaml

from ghm.reports import published

SMALL = ("epochs=1", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4", "figures=false")
TABLES = yaml.safe_load(published.TABLES.read_text())


@pytest.mark.parametrize(
    "number", [number if number == 7 else pytest.param(number, marks=pytest.mark.slow) for number in TABLES]
)
@pytest.mark.usefixtures("cluster")
def test_a_table_is_trained_at_small_scale_and_printed_beside_the_papers(number, ghm, capsys):
    sweep = (f"+sweep=table{number}", "+scale=small")
    assert ghm("train", "-m", *sweep, "seed=0", "device=cpu", *SMALL) in (0, 1)  # so short, it may learn nothing
    capsys.readouterr()
    assert ghm("report", f"table={number}", "+scale=small") in (0, 1)
    said = capsys.readouterr().out
    assert f"Table {number}: {TABLES[number]['title']}" in said
    assert TABLES[number]["source"].split(" (")[0] in said
    [written] = Path("runs/sweeps").glob(f"*/report/table{number}.md")
    ours = [line for line in written.read_text().splitlines() if line.startswith("|  | ours | 1 |")]
    run = [row for row in TABLES[number]["rows"] if "settings" in row]
    # Of Table 3 one small network stands for both large ones, which are no rows of its own.
    assert len(ours) == (0 if number == 3 else len(run))
