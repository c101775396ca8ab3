"""What the MLflow page of a sweep says of it: the verdict, the ranking with links, the curves, and where it is from."""

import time

from ghm.reports.sweep import SweepResult
from ghm.tracking import Point, Tracker

MOST = 20  # rows of the ranking; MLflow cuts a note off at 8000 characters


def write(sweep: SweepResult, tracker: Tracker, verdict: str, rows: list[tuple[str, ...]], figures: list[str]) -> None:
    """Onto the sweep's run: note, best values as metrics, best settings as tags, as params could not be corrected.

    `rows`: of the ranking, its head first, then in the order of `sweep.trials`. `figures`: file names below the
    artifact folder `figures`.
    """
    run = tracker.run(sweep.run_id)
    tags = {"mlflow.note.content": note(sweep, tracker.experiment_id, verdict, rows, figures)}
    if len(sweep.allowed):
        best, now = sweep.allowed.iloc[0], int(time.time() * 1000)
        # Older sweeps called a key that was added by its +, which MLflow does not take.
        tags |= {"best.trial": str(best["trial"])} | {f"best.{key.lstrip('+')}": str(best[key]) for key in sweep.keys}
        if sweep.goal.several:
            tags |= {"front.trials": ",".join(map(str, sweep.front))}
        run.log_points([Point(name, float(best[name]), now, len(sweep.done)) for name in sweep.goal.objectives])
    run.set_tags(tags)


def note(sweep: SweepResult, experiment: str, verdict: str, rows: list[tuple[str, ...]], figures: list[str]) -> str:
    """Markdown, with links within MLflow's pages."""
    (_, _, _, *names), *rows = rows
    lines = [f"**{verdict}**", "", f"|rank|run|{'|'.join(names)}|", f"|---|---{'|---' * len(names)}|"]
    for run_id, row in list(zip(sweep.trials["run_id"], rows, strict=True))[:MOST]:
        rank, trial, label, *values = row
        link = f"[{label} #{trial}](#/experiments/{experiment}/runs/{run_id})"
        lines.append(f"|{rank}|{link}|{'|'.join(values)}|")
    if len(rows) > MOST:
        lines.append(f"\nand {len(rows) - MOST} more: report/ranking.csv among the artifacts")
    lines += ["", *(f"![](get-artifact?path=figures/{name}&run_uuid={sweep.run_id})" for name in figures), ""]
    lines += [f"- {name}: {_code(text)}" for name, text in sweep.about.items()]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
