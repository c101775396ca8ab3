"""Figures of a sweep. One style, colours that the colour-blind can tell apart (Okabe and Ito)."""

import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ghm.reports.sweep import SweepResult
from sweeps.states import State

MOST = 40  # bars of a ranking
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 144,
}


def figures(sweep: SweepResult) -> list[tuple[str, Figure]]:
    """For MLflow, whose notes show pictures alone: file name and figure of the ranking, the curves, each swept key."""
    with matplotlib.rc_context(STYLE):
        drawn = [(_named("pareto", other), pareto(sweep, other)) for other in sweep.goal.objectives[1:]]
        drawn += [("ranking", ranking(sweep)), ("learning_curves", learning_curves(sweep))]
        for key in sweep.keys:
            if sweep.done[key].nunique() > 1:
                drawn.append((_named("by", key), over_key(sweep, key)))
    return drawn


def _named(kind: str, key: str) -> str:
    return f"{kind}_" + re.sub(r"\W", "_", key)


def ranking(sweep: SweepResult) -> Figure:
    """A bar for each of the best finished trials, best on top; AP50 as a dot."""
    done, color = sweep.done.head(MOST), _colors(sweep)
    figure, axes = _axes(height=1.2 + 0.36 * max(len(done), 1))
    places = np.arange(len(done))[::-1]
    bars = axes.barh(places, done[sweep.objective], color=[color[trial] for trial in done["trial"]], height=0.66)
    axes.bar_label(bars, fmt="%.3f", padding=4)
    axes.set_yticks(places, [f"{label}  ·  {trial}" for label, trial in zip(done["label"], done["trial"], strict=True)])
    if sweep.objective.startswith("val/"):
        axes.plot(done["val/AP50"], places, "o", color="#444444", markersize=5, label="val/AP50")
        axes.set_xlim(0, min(1.0, 1.12 * float(done[["val/AP50", sweep.objective]].max().max()) + 1e-3))
        axes.set(xlabel=f"{sweep.objective} (bars), val/AP50 (dots)")
    else:
        axes.margins(x=0.12)
        axes.set(xlabel=sweep.objective)
    axes.grid(axis="y", visible=False)
    return figure


def pareto(sweep: SweepResult, other: str) -> Figure:
    """The first objective over another: filled and joined on the front, hollow behind it, crosses out of bounds."""
    done, color = sweep.done, _colors(sweep)
    first = done["trial"].isin(sweep.front)
    front, rest, broken = done[first].sort_values(other), done[done["allowed"] & ~first], done[~done["allowed"]]
    figure, axes = _axes(height=4.2)
    axes.plot(front[other], front[sweep.objective], color="#444444", linewidth=1.2, zorder=1)
    colors = [color[trial] for trial in rest["trial"]]
    axes.scatter(rest[other], rest[sweep.objective], facecolors="none", edgecolors=colors, s=40)
    axes.scatter(
        broken[other], broken[sweep.objective], c=[color[trial] for trial in broken["trial"]], marker="x", s=30
    )
    axes.scatter(front[other], front[sweep.objective], c=[color[trial] for trial in front["trial"]], s=52, zorder=2)
    for row in front[["trial", other, sweep.objective]].itertuples(index=False):
        axes.annotate(f"{row[0]}", row[1:], textcoords="offset points", xytext=(6, 5), fontsize=9)
    axes.set(xlabel=other, ylabel=sweep.objective)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, label=group)
        for group, color in sorted({sweep.groups[trial]: color for trial, color in color.items()}.items())
    ]
    if len(broken):
        handles.append(Line2D([], [], marker="x", linestyle="", color="#444444", label="out of bounds"))
    if len(handles) > 1:
        axes.legend(handles=handles)
    return figure


def learning_curves(sweep: SweepResult) -> Figure:
    """The objective after each epoch; a trial that was pruned or failed ends in a cross."""
    figure, axes = _axes(height=4.2)
    color, groups, known = _colors(sweep), sweep.groups, sweep.curves[sweep.objective]
    named: dict[str, list[tuple[int, str]]] = {}
    for trial, state in zip(sweep.trials["trial"], sweep.trials["state"], strict=True):
        if known.get(trial):
            named.setdefault(groups[trial], []).append((trial, state))
    gap: tuple[float, float] = (np.nan, np.nan)
    for group, trials in named.items():  # as one line with gaps: a thousand of their own would take seconds
        own = color[trials[0][0]]
        points = [point for trial, _ in trials for point in (*known[trial], gap)]
        axes.plot(*zip(*points, strict=True), color=own, label=group, linewidth=1.8, alpha=0.85)
        for mark, done in (("o", True), ("x", False)):
            ends = [known[trial][-1] for trial, state in trials if (state == State.DONE) == done] or (gap,)
            axes.plot(*zip(*ends, strict=True), mark, color=own, markersize=5)
    axes.set(xlabel="epoch", ylabel=sweep.objective)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if named.keys() - {"all"}:
        axes.legend(loc="upper left")
    return figure


def over_key(sweep: SweepResult, key: str) -> Figure:
    """The objective over the values of one swept key, for the finished trials that have it."""
    done, color = sweep.done.dropna(subset=[key]), _colors(sweep)
    figure, axes = _axes(height=3.4)
    colors = [color[trial] for trial in done["trial"]]
    if done[key].map(type).eq(str).any():
        names = sorted(done[key].astype(str).unique())
        axes.scatter([names.index(str(value)) for value in done[key]], done[sweep.objective], c=colors, s=44)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        axes.scatter(done[key], done[sweep.objective], c=colors, s=44)
    axes.set(xlabel=key, ylabel=sweep.objective)
    axes.set_ylim(0, 1.15 * float(done[sweep.objective].max()) + 1e-3)
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    # Without pyplot: no window system, nothing to close.
    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots()


def colors(sweep: SweepResult, palette: Sequence[str] = PALETTE) -> dict[str, str]:
    """Of each group."""
    return {group: palette[place % len(palette)] for place, group in enumerate(sorted(set(sweep.groups.values())))}


def _colors(sweep: SweepResult) -> dict[int, str]:
    """Of each trial."""
    of_group = colors(sweep)
    return {trial: of_group[group] for trial, group in sweep.groups.items()}
