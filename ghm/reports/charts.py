"""Charts of a sweep's page, to be pointed at and zoomed into: Optuna's where they serve, and what Optuna has not."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.io import to_html

from ghm.reports.comparison import Arm
from ghm.reports.figures import PALETTE, colors
from ghm.reports.sweep import Curve, SweepResult, by_epoch
from sweeps.charts import charts as optunas
from sweeps.states import State

HUES = PALETTE[:-1]  # without black, which is none by night
MOST = 12  # configurations of which the seeds are shown
# Without a background or colours of its own: the page gives them, by day and by night.
LAYOUT = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "title": None, "template": "none"}
FONT = {"family": 'system-ui, -apple-system, "Segoe UI", sans-serif', "size": 13}
HEIGHT = 420  # pixels


def charts(sweep: SweepResult) -> list[tuple[str, str, str]]:
    """Title, what is seen, and the HTML of each chart that there is anything to see in, the most telling first."""
    objective, found = sweep.objective, optunas(sweep.goal, sweep.keys, _done(sweep))
    improved = _improvements(sweep)
    told = [
        (
            "Learning curves",
            "Thick: the best configuration of each group, the mean over its seeds, with a band from the lowest to the "
            "highest. Thin: all other trials; dotted to a cross where pruned or failed.",
            curves(sweep),
        ),
        ("Pareto front", "What no other trial beats in all objectives.", found.get("pareto")),
        ("Seeds", "Each dot is a seed; the bar is the 95 % interval of the mean.", seeds(sweep.arms[:MOST], objective)),
        (
            "Importance",
            "How far each key tells the best tenth of the trials from the rest (PED-ANOVA).",
            found.get("importance"),
        ),
        ("Cost of each improvement", _of(improved), cost(sweep, improved)),
        ("Slices", "Each dot is a trial that is done; the later, the yellower.", found.get("slices")),
        (
            "Parallel coordinates",
            "A line for each trial. Drag along an axis to choose some.",
            parallel(sweep),
        ),
    ]
    return [(title, caption, _html(figure)) for title, caption, figure in told if figure is not None]


def _html(figure: go.Figure) -> str:
    left = 130 if any(trace.type == "parcoords" for trace in figure.data) else 60  # its first names stand outside
    margin = {"l": left, "r": 20, "t": 30, "b": 50}
    figure.update_layout(**LAYOUT, font=FONT, autosize=True, width=None, height=HEIGHT, margin=margin)
    settings = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}
    for trace in figure.data:  # Optuna quotes names
        if trace.type == "scatter" and trace.x is not None:
            trace.x = [one.strip("'") if isinstance(one, str) else one for one in trace.x]
    for axis in figure.select_xaxes():
        if axis.categoryarray:
            axis.categoryarray = [str(one).strip("'") for one in axis.categoryarray]
    html: str = to_html(figure, full_html=False, include_plotlyjs=False, config=settings)
    return html


def _done(sweep: SweepResult) -> list[tuple[dict[str, object], tuple[float, ...]]]:
    """In the order in which they were begun."""
    rows = sweep.allowed.sort_values("trial").to_dict("records")
    names = sweep.goal.objectives
    return [
        ({key: row[key] for key in sweep.keys if row[key] == row[key]}, tuple(float(row[name]) for name in names))
        for row in rows
        if all(row[name] == row[name] for name in names)
    ]


def curves(sweep: SweepResult) -> go.Figure | None:
    """The objective over epochs: of the best configuration of each group with its seeds, and of all others."""
    known, groups = sweep.curves[sweep.objective], sweep.groups
    if not any(known.values()):
        return None
    figure, color = go.Figure(), colors(sweep, HUES)
    rivals = {arm.label: color[arm.group] for arm in sweep.rivals}
    if len(rivals) > len({arm.group for arm in sweep.rivals}):  # several of one group
        rivals = {label: HUES[place % len(HUES)] for place, label in enumerate(rivals)}
    shown = {trial for arm in sweep.rivals for trial in arm.trials}
    states = dict(zip(sweep.trials["trial"], sweep.trials["state"], strict=True))
    for group in color:
        own = [trial for trial in known if groups[trial] == group and trial not in shown]
        done = [known[trial] for trial in own if states[trial] == State.DONE]
        ended = [known[trial] for trial in own if states[trial] != State.DONE]
        line = {"color": color[group], "width": 1}
        usual = {"legendgroup": group, "showlegend": False, "hoverinfo": "skip", "opacity": 0.35}
        figure.add_scatter(**_joined(done), mode="lines", line=line, **usual)
        figure.add_scatter(**_joined(ended), mode="lines", line=line | {"dash": "dot"}, **usual)
        ends = [curve[-1] for curve in ended if curve]
        marker = {"symbol": "x", "size": 6, "color": color[group]}
        figure.add_scatter(**_points(ends), mode="markers", marker=marker, **usual | {"opacity": 0.7})
    for arm in reversed(sweep.rivals):
        _band(figure, _means(sweep.seed_curves(arm)), rivals[arm.label], arm)
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=sweep.objective)
    figure.update_layout(
        legend={"orientation": "h", "traceorder": "reversed", "y": 1.02, "yanchor": "bottom"}, hovermode="x unified"
    )
    return figure


def _band(figure: go.Figure, points: Sequence[tuple[int, float, float, float]], color: str, arm: Arm) -> None:
    epochs, means, lows, highs = zip(*points, strict=True) if points else ((), (), (), ())
    if len(arm.values) > 1:
        outline = {"x": [*epochs, *reversed(epochs)], "y": [*highs, *reversed(lows)], "fill": "toself"}
        figure.add_scatter(
            **outline,
            line={"width": 0},
            fillcolor=color,
            opacity=0.18,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=arm.group,
        )
    line = {"color": color, "width": 3}
    figure.add_scatter(x=epochs, y=means, mode="lines", line=line, name=escape(arm.label), legendgroup=arm.group)


def _means(found: Sequence[Curve]) -> list[tuple[int, float, float, float]]:
    """Epoch, mean, lowest and highest over seeds, as far as all of them go."""
    last = min((curve[-1][0] for curve in found if curve), default=0)
    return [(epoch, fmean(of), min(of), max(of)) for epoch, of in by_epoch(found) if epoch <= last]


def seeds(arms: Sequence[Arm], objective: str) -> go.Figure | None:
    """Of each configuration the value of every seed, and their mean with its interval."""
    several = [arm for arm in arms if len(arm.values) > 1]
    if not several:
        return None
    figure = go.Figure()
    names = [f"{escape(arm.label)} " for arm in several]
    for name, arm in zip(names, several, strict=True):
        said = [f"seed {seed}: {value:.4f}" for seed, value in arm.values.items()]
        dots = {"size": 8, "opacity": 0.6, "color": PALETTE[5]}
        figure.add_scatter(
            x=list(arm.values.values()),
            y=[name] * len(arm.values),
            mode="markers",
            marker=dots,
            text=said,
            hoverinfo="text",
            showlegend=False,
        )
    figure.add_scatter(
        x=[arm.mean for arm in several],
        y=names,
        mode="markers",
        marker={"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": PALETTE[1]}},
        error_x={"array": [arm.half or 0.0 for arm in several], "color": PALETTE[1], "thickness": 2},
        hovertemplate="mean %{x:.4f}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title=objective)
    return figure


def parallel(sweep: SweepResult) -> go.Figure | None:
    """A line for each trial that is done, across an axis for each swept key and one for the objective.

    Plotly's own, as Optuna's has no axes to drag along, and takes a browser seconds for a thousand trials.
    """
    swept = [key for key in sweep.keys if sweep.allowed[key].nunique() > 1]
    if len(swept) < 2 or len(sweep.allowed) < 2:
        return None
    values = sweep.allowed[sweep.objective].astype(float)
    axes = [_axis(key, sweep.allowed[key].to_list()) for key in swept]
    axes.append({"label": escape(sweep.objective), "values": values.to_list(), "tickformat": ".3g"})
    line = {"color": values.to_list(), "colorscale": "Viridis", "reversescale": sweep.goal.ascending, "showscale": True}
    return go.Figure(go.Parcoords(dimensions=axes, line=line, labelside="bottom"))


def _axis(key: str, values: Sequence[Any]) -> dict[str, Any]:
    """Of numbers, over their logarithm where they go far; of names, side by side. What a trial has not is "none"."""
    known = [value for value in values if value == value]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        low, high = float(min(known)), float(max(known))
        far = low > 0 and high > 20 * low
        ticks = np.geomspace(low, high, 5) if far else np.linspace(low, high, 5)
        places = {float(tick): math.log10(tick) if far else float(tick) for tick in ticks}
        none = min(places.values()) - 0.15 * (max(places.values()) - min(places.values()))
        at = [none if value != value else math.log10(value) if far else float(value) for value in values]
        named = {place: f"{tick:.3g}" for tick, place in places.items()}
    else:
        names = list(dict.fromkeys(map(str, known)))
        none = -1.0
        at = [none if value != value else float(names.index(str(value))) for value in values]
        named = {float(place): escape(name) for place, name in enumerate(names)}
    if len(known) < len(values):
        named[none] = "none"
    return {"label": escape(key), "values": at, "tickvals": list(named), "ticktext": list(named.values())}


def _improvements(sweep: SweepResult) -> list[tuple[float, float, str]]:
    """Of each trial that was the best of those until it: minutes of training so far, its value, and its settings."""
    rows = sweep.trials.sort_values("trial").to_dict("records")
    allowed, spent = set(sweep.allowed["trial"]), 0.0
    found: list[tuple[float, float, str]] = []
    for row in rows:
        spent += row["minutes"]
        value = float(row[sweep.objective])
        best = found[-1][1] if found else None
        ahead = best is None or (value < best if sweep.goal.ascending else value > best)
        if row["trial"] in allowed and ahead:
            found.append((spent, value, f"trial {row['trial']}: {row['label']}"))
    return found


def _of(improved: Sequence[tuple[float, float, str]]) -> str:
    """The last improvement, in words."""
    if len(improved) < 2:
        return ""
    (before, old, _), (now, new, by) = improved[-2:]
    return (
        f"Trials in their order. The last improvement, by {abs(new - old):.4f}, took {now - before:.1f} minutes of "
        f"training after the one before it ({by})."
    )


def cost(sweep: SweepResult, improved: Sequence[tuple[float, float, str]]) -> go.Figure | None:
    """The best value so far, over the minutes of training of all trials together."""
    if len(improved) < 2:
        return None
    spent = [*(minutes for minutes, _, _ in improved), float(sweep.trials["minutes"].sum())]
    values = [*(value for _, value, _ in improved), improved[-1][1]]
    said = [*(f"{value:.4f}<br>{escape(label)}" for _, value, label in improved), "the end"]
    figure = go.Figure()
    line = {"shape": "hv", "color": PALETTE[0], "width": 2}
    figure.add_scatter(
        x=spent, y=values, mode="lines+markers", line=line, marker={"size": 8}, text=said, hoverinfo="text"
    )
    figure.update_xaxes(title="minutes of training, all trials together", rangemode="tozero")
    figure.update_yaxes(title=f"best {sweep.objective} so far")
    return figure


def _joined(found: Iterable[Curve]) -> dict[str, list[float | None]]:
    """Many curves as one, with gaps between them: a thousand of their own would take a browser minutes."""
    points: list[tuple[float | None, float | None]] = []
    for curve in found:
        points += [*curve, (None, None)]
    return {"x": [x for x, _ in points], "y": [y for _, y in points]}


def _points(found: Sequence[tuple[int, float]]) -> dict[str, list[float]]:
    return {"x": [x for x, _ in found], "y": [y for _, y in found]}
