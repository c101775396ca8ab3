"""A sweep as MLflow's UI opens on it: its trials alone, the columns that matter, and charts of the objective.

MLflow keeps a view that is shared by a link in a tag of the experiment: JSON with a name, times and the state of the
page, deflated. Its own pages write it so (MLflow 3.17, `mlflow.sharedViewState.KEY`).
"""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any

from ghm.secrets import hidden

TAG = "mlflow.sharedViewState."
LOCAL = "http://127.0.0.1:5000"  # where `mlflow server` listens unless told otherwise
CURVES = ("val/AP50", "val/AP75", "train/ce", "train/loss")
COLUMNS = ("val/AP", "val/AP50", "val/AP75", "time/images_per_s")
OTHERS = ("val", "train", "time")  # what MLflow calls the sections that it adds; ours stands before them


def shared_view(
    key: str,
    name: str,
    objectives: Sequence[str],
    swept: Sequence[str],
    group: str | None,
    ascending: bool,
    seeds: bool = False,
) -> str:
    """The content of the tag `TAG + key`, for the sweep whose record has this key.

    `swept`: keys; `group`: the one by whose values the curves are averaged, with a band, if any; `ascending` says that
    the smallest value of the first objective comes first; `seeds`, that trials have several runs, which are shown then.
    """
    query = f"tags.`ghm.key` LIKE '{key}-{'%-%' if seeds else '%'}'"
    packed = zlib.compress(json.dumps(_state(query, objectives, swept, group, ascending)).encode(), 9)
    now = int(time.time() * 1000)
    state = f"deflate;{base64.b64encode(packed).decode()}"
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": state})


def link(uri: str, experiment: str, key: str) -> str:
    """To the view, without secrets. `uri` is the tracking server's; a database is meant to be served at `LOCAL`."""
    return f"{_runs(uri, experiment)}?workflowType=machine_learning&viewStateShareKey={key}&compareRunsMode=CHART"


def run_link(uri: str, experiment: str) -> str:
    """To a run's page, but for the run's id at its end."""
    return f"{_runs(uri, experiment)}/"


def _runs(uri: str, experiment: str) -> str:
    server = LOCAL if uri.startswith("sqlite:") else hidden(uri).rstrip("/")
    return f"{server}/#/experiments/{experiment}/runs"


def _state(
    query: str, objectives: Sequence[str], swept: Sequence[str], group: str | None, ascending: bool
) -> dict[str, Any]:
    objective, *others = objectives
    if others:  # a front is one of runs, not of their means
        group = None
    charts = [_against(objective, other) for other in others]
    charts += [_curve(name) for name in dict.fromkeys((objective, *CURVES))]
    charts += [_chart("BAR", f"bar-{name}", metricKey=name, displayName=f"{name}, last epoch") for name in objectives]
    if len(swept) > 1:
        charts.append(_chart("PARALLEL", "parallel", selectedParams=list(swept), selectedMetrics=list(objectives)))
    sections = [("ours", "Objective", True), *((name, name, False) for name in OTHERS)]
    return {
        "searchFilter": query,
        "orderByKey": _column("metrics", objective),
        "orderByAsc": ascending,
        "selectedColumns": [
            *(_column("params", one) for one in swept),
            *(_column("metrics", one) for one in dict.fromkeys((*objectives, *COLUMNS))),
            _column("tags", "sweep.state"),
        ],
        "groupBy": group and {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": group}]},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": uuid, "name": title, "display": shown, "isReordered": True} for uuid, title, shown in sections
        ],
        "isAccordionReordered": True,
    }


def _curve(metric: str) -> dict[str, Any]:
    return _chart(
        "LINE",
        f"curve-{metric}",
        metricKey=metric,
        displayName=metric,
        xAxisKey="step",
        yAxisKey="metric",
        scaleType="linear",
        xAxisScaleType="linear",
        lineSmoothness=0,
        range={},
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
    )


def _against(one: str, other: str) -> dict[str, Any]:
    """A point a run."""
    axes = {name: {"key": key, "type": "METRIC"} for name, key in (("xaxis", other), ("yaxis", one))}
    return _chart("SCATTER", f"scatter-{one}-{other}", displayName=f"{one} over {other}", **axes)


def _chart(kind: str, uuid: str, **settings: Any) -> dict[str, Any]:
    common = {"type": kind, "uuid": uuid, "metricSectionId": "ours", "deleted": False, "isGenerated": False}
    return common | {"runsCountToCompare": 100} | settings


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
