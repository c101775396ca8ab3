"""A table of the paper beside our own trials: what was published, what was measured here, and the difference."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import yaml

from ghm.interval import half_width
from ghm.reports.sweep import BATCH, SweepResult

TABLES = Path(__file__).with_name("published.yaml")
SECONDS = "s/iteration"  # the one column that is no metric


@dataclass(frozen=True)
class Measured:
    """Mean over seeds, and half the width of its 95 % confidence interval (Student's t); None for a single seed."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Row:
    """A row of the paper; `ours` and `runs` (MLflow's ids, one a seed) are empty where nothing of it was run."""

    name: str
    published: list[float | None]
    ours: list[Measured | None]
    runs: list[str]


@dataclass(frozen=True)
class Table:
    """`source` says where the published numbers stand, `columns` what they are; AP is in percent."""

    number: int
    title: str
    source: str
    columns: list[str]
    rows: list[Row]

    def lines(self) -> list[list[str]]:
        """Three of text for each row: paper, ours, difference; one for a row that is only quoted."""
        digits, lines = [3 if column == SECONDS else 1 for column in self.columns], []
        for row in self.rows:
            lines.append([row.name, "paper", "", *map(_number, row.published, digits)])
            if row.runs:
                pairs = zip(row.published, row.ours, digits, strict=True)
                lines.append(["", "ours", str(len(row.runs)), *map(_interval, row.ours, digits)])
                lines.append(["", "diff", "", *(_difference(*pair) for pair in pairs)])
        return lines

    @property
    def header(self) -> list[str]:
        return ["", "", "seeds", *self.columns]

    def markdown(self, run_link: str) -> str:
        """`run_link`: the address of a run but for its id."""
        lines = [f"## Table {self.number}: {self.title}", "", f"Paper: {self.source}. Ours: mean ± 95 % interval.", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        lines += ["| " + " | ".join(line) + " |" for line in self.lines()]
        linked = [
            (row.name, [f"[{place}]({run_link}{run})" for place, run in enumerate(row.runs, 1)]) for row in self.rows
        ]
        return "\n".join([*lines, "", *(f"- {name}: {' '.join(links)}" for name, links in linked if links), ""])

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "column", "paper", "ours", "interval", "seeds", "source"])
        for row in self.rows:
            for column, published, ours in zip(self.columns, row.published, row.ours, strict=True):
                half = None if ours is None else ours.half
                measured = None if ours is None else ours.mean
                writer.writerow([row.name, column, published, measured, half, len(row.runs), self.source])
        return text.getvalue()


def table(number: int, sweep: SweepResult) -> Table:
    """Table `number` of the paper beside the finished trials of a sweep. ValueError for one that is not known."""
    known: dict[int, Any] = yaml.safe_load(TABLES.read_text())
    if number not in known:
        raise ValueError(f"table={number}: must be one of {', '.join(map(str, known))}")
    made = known[number]
    rows = []
    for row in made["rows"]:
        trials = _of(row.get("settings"), sweep)
        ours = [_measured(column, trials) for column in made["columns"]]
        rows.append(Row(row["name"], row["values"], ours, list(trials["run_id"])))
    return Table(number, made["title"], made["source"], made["columns"], rows)


def _of(settings: dict[str, Any] | None, sweep: SweepResult) -> pd.DataFrame:
    """The finished trials that have these settings; what a sweep does not vary is not asked of it."""
    done = sweep.done
    if settings is None:
        return done[:0]
    for key, value in settings.items():
        if key in done:
            done = done[done[key].astype(str) == str(value)]
    return done


def _measured(column: str, trials: pd.DataFrame) -> Measured | None:
    if column == SECONDS:
        values = trials[BATCH] / trials["time/images_per_s"]
    elif f"val/{column}" in trials:
        values = 100 * trials[f"val/{column}"]
    else:
        return None
    numbers = [float(value) for value in values.dropna()]
    if not numbers:
        return None
    return Measured(fmean(numbers), half_width(numbers) if len(numbers) > 1 else None)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(value: Measured | None, digits: int) -> str:
    if value is None:
        return ""
    return _number(value.mean, digits) + ("" if value.half is None else f" ± {value.half:.{digits}f}")


def _difference(published: float | None, ours: Measured | None, digits: int) -> str:
    return "" if published is None or ours is None else f"{ours.mean - published:+.{digits}f}"
