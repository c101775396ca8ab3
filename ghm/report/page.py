"""The page of a sweep, its files, and the same ranking for a terminal."""

import base64
import shlex
import sys
from pathlib import Path
from typing import Any

import jinja2
from rich import box
from rich.table import Table

from ghm.report import note
from ghm.report.figures import figures
from ghm.report.sweep import SweepResult
from ghm.secrets import hidden
from ghm.tracking import Tracker, link, run_link
from sweeps.states import State

COLUMNS = ("rank", "trial", "settings", "val/AP", "AP50", "AP75", "img/s", "min")


def verdict(sweep: SweepResult) -> str:
    """Which setting won, how far the best of each other group is behind, and how far to trust that."""
    if not len(sweep.done):
        return "No trial finished."
    best, objective = sweep.done.iloc[0], sweep.objective
    text = f"Best: {best['label']} with {objective} {best[objective]:.3f} (val/AP50 {best['val/AP50']:.3f})."
    if not sweep.learned:
        return f"{text} That does not beat boxes placed without looking at the image: nothing was learned."
    rivals = sweep.done.assign(group=sweep.done["trial"].map(sweep.groups)).drop_duplicates("group").iloc[1:]
    if len(rivals):
        behind = [f"{row['group']} {row[objective]:.3f} ({row['label']})" for _, row in rivals.iterrows()]
        text += f" Best of the others: {', '.join(behind)}."
        if "seed" not in sweep.keys:
            text += " One seed each: repeat with other seeds to be sure."
    return text


def ranking(sweep: SweepResult) -> list[tuple[str, ...]]:
    """The rows of the ranking under `COLUMNS`, as text."""
    rows = []
    for place, row in enumerate(sweep.trials.to_dict("records"), start=1):
        rank = str(place) if row["state"] == "done" else row["state"]
        values = [_number(row[key]) for key in (sweep.objective, "val/AP50", "val/AP75")]
        speed = _number(row["time/images_per_s"], 0)
        rows.append((rank, str(row["trial"]), row["label"], *values, speed, _number(row["minutes"], 1)))
    return rows


def terminal_table(sweep: SweepResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in _columns(sweep):
        settings = column == "settings"
        table.add_column(column, justify="left" if settings else "right", no_wrap=not settings)
    for row in ranking(sweep):
        table.add_row(*row, style="bold" if row[0] == "1" else "")
    return table


def write(sweep: SweepResult, tracker: Tracker, folder: Path) -> Path:
    """Write figures and page below `folder` and to the sweep's MLflow run; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    run = tracker.run(sweep.run_id)
    images, figures_written = [], []
    for name, caption, figure in figures(sweep):
        path = folder / f"{name}.png"
        figure.savefig(path)
        run.log_file(path, "figures")
        figures_written.append(path.name)
        images.append((caption, base64.b64encode(path.read_bytes()).decode()))
    note.write(sweep, tracker, verdict(sweep), ranking(sweep), figures_written)
    page = folder / "index.html"
    page.write_text(_page(sweep, images, tracker))
    table = folder / "ranking.csv"
    table.write_text(sweep.trials.to_csv(index=False))
    for path in (page, table):
        run.log_file(path, "report")
    return page


def ui_command(tracker: Tracker) -> str:
    """How to open MLflow on what was recorded."""
    if not tracker.local:
        return hidden(tracker.uri)
    # Without its job runners the server starts in seconds and takes a quarter of the memory.
    mlflow = Path(sys.executable).parent / "mlflow"
    server = shlex.join([str(mlflow), "server", "--workers", "1", "--backend-store-uri", hidden(tracker.uri)])
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {server}"


def _page(sweep: SweepResult, images: list[tuple[str, str]], tracker: Tracker) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts = ", ".join(f"{number} {state}" for state, number in sweep.trials["state"].value_counts().items())
    failed = sweep.trials[sweep.trials["state"] == State.FAILED]
    return environment.get_template("page.html.j2").render(
        sweep=sweep,
        counts=counts,
        verdict=verdict(sweep),
        columns=_columns(sweep),
        rows=list(zip(sweep.trials["run_id"], ranking(sweep), strict=True)),
        run_link=run_link(tracker.uri, tracker.experiment_id),
        view=link(tracker.uri, tracker.experiment_id, sweep.key),
        images=images,
        failures=failed[["trial", "label", "error"]].to_numpy().tolist(),
        ui=ui_command(tracker),
        local=tracker.local,
    )


def _columns(sweep: SweepResult) -> tuple[str, ...]:
    return tuple(sweep.objective if column == "val/AP" else column for column in COLUMNS)


def _number(value: Any, digits: int = 3) -> str:
    return "" if value != value or value is None else f"{value:.{digits}f}"
