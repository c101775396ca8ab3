"""Optuna's own charts of a sweep as its tracker holds it: its trials are put into a study in memory."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, create_trial
from plotly.graph_objects import Figure

from sweeps.goal import Goal, Values

FEW = 10  # trials, below which nobody can tell what matters


def charts(goal: Goal, keys: Sequence[str], trials: Sequence[tuple[Mapping[str, Any], Values]]) -> dict[str, Figure]:
    """By name `slices`, `importance` and `pareto`, as far as there is anything to see.

    `trials`: what each that is done was given, of the swept `keys` those that it has, and its value of each objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, first = _study(goal, keys, trials), goal.objectives[0]
    swept = [key for key in keys if len({str(params[key]) for params, _ in trials if key in params}) > 1]
    drawn: dict[str, Figure] = {}

    def smaller_is_better(trial: FrozenTrial) -> float:
        """As Optuna's importance takes a target; of one objective it knows the direction."""
        return goal.rank(trial.values)[0]

    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")  # that targets are small: they are
        if 1 < len(goal.objectives) < 4 and len(trials) > 1:
            drawn["pareto"] = visualization.plot_pareto_front(study, target_names=list(goal.objectives))
        if any(_compares(key, trials) for key in swept):  # else the ranking says as much
            slices = visualization.plot_slice(study, swept, target=_first if goal.several else None, target_name=first)
            drawn["slices"] = slices.update_traces(marker={"colorscale": "Viridis"})
        if len(swept) > 1 and len(trials) >= FEW:
            bars = visualization.plot_param_importances(
                study, params=swept, target=smaller_is_better if goal.several else None, target_name=first
            )
            bars.update_yaxes(title=None, automargin=True)
            drawn["importance"] = bars.update_xaxes(title="share of what all of them tell")
    return drawn


def _compares(key: str, trials: Sequence[tuple[Mapping[str, Any], Values]]) -> bool:
    """Whether there are numbers along this key, or several trials with one name."""
    values = [params[key] for params, _ in trials if key in params]
    return not isinstance(values[0], str) or len(set(values)) < len(values)


def _first(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _study(goal: Goal, keys: Sequence[str], trials: Sequence[tuple[Mapping[str, Any], Values]]) -> Study:
    study = optuna.create_study(directions=goal.directions)
    spaces = {key: _space([params[key] for params, _ in trials if key in params]) for key in keys}
    for params, values in trials:
        plain = {key: _plain(value, spaces[key]) for key, value in params.items()}
        distributions = {key: spaces[key] for key in params}
        study.add_trial(create_trial(params=plain, distributions=distributions, values=list(values)))
    return study


def _space(values: Sequence[Any]) -> BaseDistribution:
    """That holds all of these: numbers, over a scale that fits them, or names."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not values or not numbers or not all(map(math.isfinite, values)):
        return CategoricalDistribution(list(dict.fromkeys(map(str, values))) or [""])
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=0 < low < high / 20)


def _plain(value: Any, space: BaseDistribution) -> Any:
    return str(value) if isinstance(space, CategoricalDistribution) else float(value)
