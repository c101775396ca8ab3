"""The page of a sweep, its files, and the same ranking for a terminal."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs
from rich import box
from rich.table import Table

from ghm.reports import note
from ghm.reports.charts import charts
from ghm.reports.comparison import Comparison, compare
from ghm.reports.failures import failures, last_line
from ghm.reports.figures import figures
from ghm.reports.sweep import SweepResult
from ghm.reports.wins import matrix
from ghm.secrets import hidden
from ghm.tracking import Tracker, link, run_link


def verdict(sweep: SweepResult) -> str:
    """Which setting won, how far the best of each other group is behind, and how far to trust that."""
    if not len(sweep.done):
        return "No trial finished."
    if not len(sweep.allowed):
        return f"No trial keeps the bounds of the search, which was for {str(sweep.goal).replace('`', '')}."
    best, objective = sweep.allowed.iloc[0], sweep.objective
    if sweep.goal.several:
        return _of_the_front(sweep)
    nothing = "That does not beat boxes placed without looking at the image: nothing was learned."
    if any(len(arm.values) > 1 for arm in sweep.arms):
        return " ".join(_over_seeds(sweep)) + ("" if sweep.learned else f" {nothing}")
    text = f"Best: {best['label']} with {objective} {best[objective]:.3f} (val/AP50 {best['val/AP50']:.3f})."
    if not sweep.learned:
        return f"{text} {nothing}"
    rivals = sweep.allowed.assign(group=sweep.allowed["trial"].map(sweep.groups)).drop_duplicates("group").iloc[1:]
    if len(rivals):
        behind = [f"{row['group']} {row[objective]:.3f} ({row['label']})" for _, row in rivals.iterrows()]
        text += f" Best of the others: {', '.join(behind)}."
    if len(sweep.allowed) > 1:
        text += " One seed each: repeat with hydra.sweeper.replicates=5 to be sure."
    return text


def _over_seeds(sweep: SweepResult) -> list[str]:
    """Sentences: the best configuration by its mean, and how each rival compares with it."""
    compared = sweep.rivals
    best, *rivals = compared
    told = [f"Best: {best.label} with {sweep.objective} {best.shown}, mean of {_seeds(len(best.values))}."]
    pairs = compare(compared, sweep.goal.ascending)
    found = {pair.other.trials: pair for pair in pairs if pair.one is best}
    for rival in rivals:
        if rival.trials in found:
            told.append(_against(found[rival.trials]))
        else:
            told.append(f"No two seeds were run of both this and {rival.label} ({rival.shown}): give more.")
    if len(pairs) > 1:
        told.append(f"p is corrected for {len(pairs)} comparisons (Holm).")
    return told


def _against(pair: Comparison) -> str:
    """The best one against a rival, in words."""
    rival, by = f"{pair.other.label} ({pair.other.shown})", f"{abs(pair.difference):.3f}"
    how = f"(95 % interval {pair.low:.3f} to {pair.high:.3f}, {abs(pair.effect):.1f} standard deviations of a seed, "
    how += f"p = {pair.chance:.2g}, {_seeds(pair.seeds)})"
    if pair.different:
        return f"{'Better' if pair.difference > 0 else 'Worse'} than {rival} by {by} {how}."
    if pair.other.looks > 1:
        more = "hydra.sweeper.race=0 runs all seeds of each and tells more"
        return f"{rival} is probably worse, as the race dropped it: {by} behind {how}; {more}."
    more = f"about {_seeds(pair.more, 'more ')}" if pair.more <= 1000 else "more than 1000 more seeds"
    side = "ahead" if pair.difference >= 0 else "behind"
    return f"Not distinguishable from {rival}: {by} {side} {how}; {more} of each would tell."


def _seeds(count: int, more: str = "") -> str:
    return f"{count} {more}seeds" if count != 1 else f"one {more}seed"


def over_seeds(sweep: SweepResult) -> list[tuple[str, ...]]:
    """A table of the configurations by their means, its head first; empty where none has several seeds."""
    arms = sweep.arms
    if all(len(arm.values) < 2 for arm in arms):
        return []
    rows: list[tuple[str, ...]] = [("rank", "seeds", "settings", f"{sweep.objective} ± 95 %", "lowest", "highest")]
    for place, arm in enumerate(arms, start=1):
        ends = [f"{end(arm.values.values()):.3f}" for end in (min, max)]
        rows.append((str(place) if arm.looks == 1 else "dropped", str(len(arm.values)), arm.label, arm.shown, *ends))
    return rows


def _of_the_front(sweep: SweepResult) -> str:
    """What can be had of several objectives."""
    front = sweep.front
    rows = sweep.trials.set_index("trial").loc[front]
    ends = []
    for name, way in zip(sweep.goal.objectives, sweep.goal.directions, strict=True):
        best = rows.loc[rows[name].idxmax() if way == "maximize" else rows[name].idxmin()]
        ends.append(f"{'largest' if way == 'maximize' else 'smallest'} {name} {_number(best[name])} ({best['label']})")
    count = f"{len(front)} of {len(sweep.done)} trials are" if len(front) > 1 else f"1 of {len(sweep.done)} trials is"
    text = f"{count} on the Pareto front, which no other trial beats in all objectives: {', '.join(ends)}."
    return text if sweep.learned else f"{text} None beats boxes placed without looking at the image."


def ranking(sweep: SweepResult) -> list[tuple[str, ...]]:
    """The rows of the ranking under its `columns`, as text."""
    rows, front = [], set(sweep.front) if sweep.goal.several else set()
    for place, row in enumerate(sweep.trials.to_dict("records"), start=1):
        rank = str(place) if row["state"] == "done" else row["state"]
        if row["state"] == "done" and not row["allowed"]:
            rank = "out of bounds"
        elif row["trial"] in front:
            rank = f"{place} front"
        values = [_number(row[key], digits) for key, _, digits in _measures(sweep)]
        rows.append((rank, str(row["trial"]), row["label"], *values, _number(row["minutes"], 1)))
    return rows


def _measures(sweep: SweepResult) -> list[tuple[str, str, int]]:
    """Key, title and digits of what is shown of each trial: what the search is after, and what one asks beside it."""
    usual = {"val/AP50": ("AP50", 3), "val/AP75": ("AP75", 3), "time/images_per_s": ("img/s", 0)}
    wanted = [(key, key, usual.get(key, ("", 3))[1]) for key in sweep.goal.metrics]
    return wanted + [(key, *shown) for key, shown in usual.items() if key not in sweep.goal.metrics]


def terminal_tables(sweep: SweepResult) -> list[Table]:
    """The ranking of trials, and of configurations over their seeds where there are several."""
    return [_table(rows) for rows in ([columns(sweep), *ranking(sweep)], over_seeds(sweep)) if rows]


def _table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in rows[0]:
        settings = column == "settings"
        table.add_column(column, justify="left" if settings else "right", no_wrap=not settings)
    for row in rows[1:]:
        table.add_row(*row, style="bold" if row[0] == "1" else "")
    return table


def write(sweep: SweepResult, tracker: Tracker, folder: Path) -> Path:
    """Write figures and page below `folder` and to the sweep's MLflow run; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    run = tracker.run(sweep.run_id)
    pictures = []
    for name, figure in figures(sweep):
        path = folder / f"{name}.png"
        figure.savefig(path)
        run.log_file(path, "figures")
        pictures.append(path.name)
    told, rows = verdict(sweep), ranking(sweep)
    note.write(sweep, tracker, told, [columns(sweep), *rows], pictures)
    page = folder / "index.html"
    page.write_text(_page(sweep, tracker, told, rows))
    table = folder / "ranking.csv"
    table.write_text(sweep.trials.assign(error=sweep.trials["error"].map(last_line)).to_csv(index=False))
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


def _page(sweep: SweepResult, tracker: Tracker, told: str, rows: list[tuple[str, ...]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    counts = ", ".join(f"{number} {state}" for state, number in sweep.trials["state"].value_counts().items())
    return environment.get_template("page.html.j2").render(
        sweep=sweep,
        counts=counts,
        verdict=told,
        columns=columns(sweep),
        rows=list(zip(sweep.trials["run_id"], rows, strict=True)),
        over_seeds=over_seeds(sweep),
        run_link=run_link(tracker.uri, tracker.experiment_id),
        view=link(tracker.uri, tracker.experiment_id, sweep.key),
        wins=matrix(sweep),
        charts=charts(sweep),
        plotly=get_plotlyjs(),
        failures=failures(sweep),
        ui=ui_command(tracker),
        local=tracker.local,
    )


def columns(sweep: SweepResult) -> tuple[str, ...]:
    """Of the ranking."""
    return ("rank", "trial", "settings", *(title for _, title, _ in _measures(sweep)), "min")


def _number(value: Any, digits: int = 3) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"
