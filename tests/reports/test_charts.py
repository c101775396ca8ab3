"""What a sweep's page shows of it, read from the charts themselves."""

import numpy as np
import pandas as pd
import pytest

from ghm.reports import charts, failures, wins
from ghm.reports.sweep import SweepResult
from sweeps import charts as optunas
from sweeps.goal import Goal

TRACEBACK = """Traceback (most recent call last):
  File "/ghm/worker.py", line 52, in train
    build()
  File "/ghm/settings/parts.py", line {line}, in build
    raise error
{error}"""
AP = Goal(("val/AP",), ("maximize",))


def result(rows, curves=None, seeds=None, runs=None, goal=AP) -> SweepResult:
    """A sweep of trials given as (params, value, state) or with an error."""
    made = []
    for trial, (params, value, state, *error) in enumerate(rows):
        label = " ".join(f"{key}={one}" for key, one in params.items())
        row = {"trial": trial, "label": label, "state": state, "minutes": 2.0, "error": "".join(error), "run_id": ""}
        known = {"val/AP": value, "val/AP50": value, "val/chance_AP50": 0.0, "allowed": True}
        made.append(row | known | params)
    keys = list(dict.fromkeys(key for params, *_ in rows for key in params))
    trials = pd.DataFrame(made).sort_values("val/AP", ascending=goal.ascending).reset_index(drop=True)
    return SweepResult("s", "id", "key", goal, keys, trials, {"val/AP": curves or {}}, {}, seeds or {}, runs or {})


def test_who_is_ahead_is_counted_in_trainings_that_differ_in_nothing_else():
    nan = float("nan")
    grid = [
        ({"loss": loss, "lr": lr, "seed": seed}, value, "done")
        for loss, values in (("ghm", [0.3, 0.2, 0.5, 0.4]), ("focal", [0.2, 0.3, 0.4, 0.4]))
        for (lr, seed), value in zip([(1, 0), (1, 1), (2, 0), (2, 1)], values, strict=True)
    ]
    found = wins.matrix(result([*grid, ({"loss": "ohem", "lr": 9, "seed": 0}, 0.9, "done")]))
    assert str(found["ghm"]["focal"]) == "2.5 of 4"  # a tie is a half
    assert str(found["focal"]["ghm"]) == "1.5 of 4"
    assert str(found["ohem"]["ghm"]) == ""  # nothing is equal
    smallest = wins.matrix(result(grid, goal=Goal(("val/AP",), ("minimize",))))
    assert str(smallest["ghm"]["focal"]) == "1.5 of 4"
    # What only one of two has is no difference; what was pruned does not count.
    own = [
        ({"loss": "ghm", "bins": 5, "lr": 1}, 0.3, "done"),
        ({"loss": "ghm", "bins": 9, "lr": 1}, 0.5, "done"),
        ({"loss": "focal", "bins": nan, "lr": 1}, 0.45, "done"),
        ({"loss": "focal", "bins": nan, "lr": 2}, 0.1, "pruned"),
    ]
    assert wins.matrix(result(own)) == {}  # one comparison is no table
    more = [({"loss": "ghm", "bins": 5, "lr": 3}, 0.3, "done"), ({"loss": "focal", "bins": nan, "lr": 3}, 0.2, "done")]
    assert str(wins.matrix(result(own + more))["focal"]["ghm"]) == "1 of 2"  # .45 against a mean of .4, .2 against .3
    seeds = {0: {0: 0.3, 1: 0.5}, 1: {0: 0.4, 1: 0.4}}
    replicated = result([({"loss": "ghm"}, 0.4, "done"), ({"loss": "focal"}, 0.4, "done")], seeds=seeds)
    assert str(wins.matrix(replicated)["ghm"]["focal"]) == "1 of 2"
    drawn = [({"loss": "ghm", "lr": 0.1}, 0.3, "done"), ({"loss": "focal", "lr": 0.2}, 0.4, "done")]
    assert wins.matrix(result(drawn)) == {}


def test_failures_of_one_line_of_code_are_one_group_whatever_they_say():
    rows = [
        ({"x": number}, float("nan"), "failed", TRACEBACK.format(line=line, error=error))
        for number, (line, error) in enumerate(
            [(10, "RuntimeError: 3 MiB"), (20, "RuntimeError: 3 MiB"), (10, "RuntimeError: 4 MiB"), (10, "OSError: no")]
        )
    ]
    lost = [({"x": 8 + number}, float("nan"), "failed", f"attempt {number} of 3 was lost: died") for number in (1, 2)]
    found = failures.failures(result([*rows, *lost]))
    assert sorted(group.trials for group in found) == [[0, 2], [1], [3], [4, 5]]
    first = next(group for group in found if group.trials == [0, 2])
    assert first.reason == "RuntimeError: 3 MiB"
    assert first.traceback.startswith("Traceback")
    assert [len(group.trials) for group in found] == [2, 2, 1, 1]


def test_a_band_goes_from_the_lowest_to_the_highest_seed_and_what_was_pruned_ends_in_a_cross():
    curves = {0: [(1, 0.15), (2, 0.3)], 1: [(1, 0.1)], 2: [(1, 0.1), (2, 0.2)]}
    rows = [({"loss": "ghm"}, 0.3, "done"), ({"loss": "ghm"}, 0.1, "pruned"), ({"loss": "focal"}, 0.2, "done")]
    runs = {0: [[(1, 0.1), (2, 0.2)], [(1, 0.2), (2, 0.4)]]}
    figure = charts.curves(result(rows, curves, {0: {0: 0.2, 1: 0.4}}, runs))
    named = {trace.name: trace for trace in figure.data if trace.name}
    assert list(named["loss=ghm"].y) == pytest.approx([0.15, 0.3])
    [band] = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(band.y) == pytest.approx([0.2, 0.4, 0.2, 0.1])  # there along the highest, back along the lowest
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x" and len(trace.x)]
    assert [(list(trace.x), list(trace.y)) for trace in crosses] == [([1], [0.1])]


def test_settings_of_the_one_loss_that_ended_have_a_colour_each():
    rows = [({"loss": "ghm", "x": x}, 0.1 * x, "done") for x in (1, 2)]
    rows.append(({"loss": "focal", "x": 1}, float("nan"), "failed"))
    figure = charts.curves(result(rows, {number: [(1, 0.1), (2, 0.2)] for number in (0, 1)}))
    assert len({trace.line.color for trace in figure.data if trace.name}) == 2


def test_cost_is_the_training_of_all_trials_until_the_best_changes():
    values = [0.2, 0.1, 0.5, 0.4]
    sweep = result([({"x": number}, value, "done") for number, value in enumerate(values)])
    improved = charts._improvements(sweep)
    assert [(minutes, value) for minutes, value, _ in improved] == [(2.0, 0.2), (6.0, 0.5)]
    assert "by 0.3000, took 4.0 minutes" in charts._of(improved)
    assert list(charts.cost(sweep, improved).data[0].x) == [2.0, 6.0, 8.0]
    downwards = result([({"x": 0}, 0.2, "done"), ({"x": 1}, 0.1, "done")], goal=Goal(("val/AP",), ("minimize",)))
    assert [value for _, value, _ in charts._improvements(downwards)] == [0.2, 0.1]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_importance_is_of_the_better_end(direction):
    """Among the best trials a is always near 1 and b is anything; among the worst it is the other way round."""
    draws = np.random.default_rng(0)
    trials = []
    for _ in range(300):
        a, b = draws.uniform(0, 1, 2)
        good = 10 - abs(a - 0.9) if a > 0.8 else (-10 - abs(b - 0.1) if b < 0.2 else 0.0)
        trials.append(({"a": a, "b": b}, (good if direction == "maximize" else -good,)))
    [bars] = optunas.charts(Goal(("v",), (direction,)), ["a", "b"], trials)["importance"].data
    shares = dict(zip(bars.y, bars.x, strict=True))
    assert shares["a"] > shares["b"]


def test_of_several_objectives_importance_is_of_the_first_ones_better_end():
    draws = np.random.default_rng(0)
    trials = []
    for _ in range(300):
        a, b = draws.uniform(0, 1, 2)
        trials.append(({"a": a, "b": b}, (10.0 if a > 0.8 else -10.0 - b if b < 0.2 else 0.0, 1.0)))
    goal = Goal(("v", "w"), ("maximize", "minimize"))
    found = optunas.charts(goal, ["a", "b"], trials)
    [bars] = found["importance"].data
    shares = dict(zip(bars.y, bars.x, strict=True))
    assert shares["a"] > shares["b"]
    assert "pareto" in found


def test_an_axis_holds_numbers_names_and_what_a_trial_has_not():
    numbers = charts._axis("lr", [0.0001, 0.01, float("nan")])
    assert numbers["values"][:2] == pytest.approx([-4, -2])  # so far apart that their logarithm is drawn
    assert numbers["ticktext"][-1] == "none"
    assert numbers["values"][2] == numbers["tickvals"][-1] < -4
    names = charts._axis("loss", ["ghm", "<b>", "ghm"])
    assert (names["values"], names["ticktext"]) == ([0.0, 1.0, 0.0], ["ghm", "&lt;b&gt;"])


def test_a_page_of_a_thousand_trials_is_whole_and_holds_no_markup_of_theirs():
    draws = np.random.default_rng(0)
    rows = [
        (
            {"loss": "<img src=x>" if number % 2 else "focal", "lr": float(draws.uniform())},
            float(draws.uniform()),
            "done",
        )
        for number in range(1000)
    ]
    curves = {number: [(1, 0.1), (2, row[1])] for number, row in enumerate(rows)}
    shown = charts.charts(result(rows, curves))
    titles = [title for title, _, _ in shown]
    assert titles == ["Learning curves", "Importance", "Cost of each improvement", "Slices", "Parallel coordinates"]
    for _, _, html in shown:
        assert "<img" not in html


def test_what_there_is_nothing_to_see_in_is_left_out():
    assert [title for title, _, _ in charts.charts(result([({}, 0.2, "done")]))] == []
    nothing = result([({"x": 1}, float("nan"), "failed")])
    assert charts.charts(nothing) == []
