"""Several objectives, and bounds on what a trial may cost."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sweeps.draw import refuse_unfit
from sweeps.goal import Goal
from sweeps.launch import Incomplete
from tests.sweeps.tasks import reach_and_cost
from tests.sweeps.test_launch import states, study, sweep

TWO = Goal(("reach", "cost"), ("maximize", "minimize"))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_optunas(points):
    made = optuna.create_study(directions=TWO.directions)
    for values in points:
        made.add_trial(optuna.trial.create_trial(values=list(map(float, values))))
    front = TWO.front(dict(enumerate(points)))
    assert sorted(front) == sorted(trial.number for trial in made.best_trials)
    assert [-points[number][0] for number in front] == sorted(-points[number][0] for number in front)


@pytest.mark.parametrize(
    ("objective", "direction", "bounds", "said"),
    [
        (
            "a",
            ["maximize", "minimize"],
            {},
            "direction=maximize,minimize: objective=a needs one direction for each; give 1",
        ),
        (["a", "b"], "maximize", {}, "direction=maximize: objective=a,b needs one direction for each; give 2"),
        (["a", "a"], ["maximize"] * 2, {}, "objective=a,a: names one twice"),
        ("a", "up", {}, "direction=up: must be maximize or minimize"),
        ("a", "maximize", {"at_most": {"b": "many"}}, "at_most: b=many: must be a number"),
        ("a", "maximize", {"at_least": {"b": True}}, "at_least: b=True: must be a number"),
    ],
)
def test_what_is_no_goal_is_refused(objective, direction, bounds, said):
    with pytest.raises(ValueError, match=said):
        Goal.of(objective, direction, **bounds)


def test_a_sampler_and_a_pruner_for_one_objective_are_refused_for_two():
    random, nop = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    refuse_unfit(TWO, random, nop)
    refuse_unfit(TWO, optuna.samplers.NSGAIISampler(), nop)
    with pytest.raises(ValueError, match="CmaEsSampler searches for one objective, and here are 2; take nsgaii"):
        refuse_unfit(TWO, optuna.samplers.CmaEsSampler(), nop)
    with pytest.raises(ValueError, match="MedianPruner judges one objective, and here are 2"):
        refuse_unfit(TWO, random, optuna.pruners.MedianPruner())
    refuse_unfit(Goal(("a",), ("maximize",)), optuna.samplers.CmaEsSampler(), optuna.pruners.MedianPruner())


SPACE = "x=1,2,3,4"  # reach 1 to 4 at a cost of 1, 4, 9, 16, but 3 costs 20


@pytest.mark.usefixtures("cluster")
def test_a_sweep_for_two_objectives_keeps_its_front(capsys):
    assert sweep(SPACE, goal=TWO, task=reach_and_cost) == (4.0, 16.0)
    assert states() == ["COMPLETE"] * 4
    assert sorted(trial.values for trial in study().best_trials) == [[1.0, 1.0], [2.0, 4.0], [4.0, 16.0]]
    assert study().metric_names == ["reach", "cost"]
    written = OmegaConf.load("runs/sweeps/toy/optimization_results.yaml")  # as Hydra's own sweeper does
    assert written.solutions == [{"params": {"x": x}, "values": [float(x), float(x**2)]} for x in (4, 2, 1)]
    assert "3 on the Pareto front; best reach 4.0000, cost 16.0000: trial" in " ".join(capsys.readouterr().out.split())
    assert sweep(SPACE, goal=TWO, task=reach_and_cost) == (4.0, 16.0)  # and nothing runs
    with pytest.raises(ValueError, match="another space, or in another direction"):
        sweep(SPACE, goal=Goal(("reach", "cost"), ("maximize", "maximize")), task=reach_and_cost)


@pytest.mark.usefixtures("cluster")
def test_the_best_of_a_bounded_search_keeps_its_bounds():
    bounded = Goal(("reach",), ("maximize",), at_most={"cost": 15}, at_least={"reach": 0})
    assert sweep(SPACE, goal=bounded, task=reach_and_cost, returns=1) == 2.0
    broken = {trial.params["x"]: trial.system_attrs["constraints"] for trial in study().trials}
    assert broken == {1: [-14, -1], 2: [-11, -2], 3: [5, -3], 4: [1, -4]}
    assert study().best_trial.params == {"x": 2}  # Optuna knows it too
    assert OmegaConf.load("runs/sweeps/toy/optimization_results.yaml").best_params == {"x": 2}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(("value",), ("maximize",)), "returned 2 values, and not 1: one for each of objective=value"),
        (Goal(("a", "b"), ("maximize",) * 2, at_most={"memory": 1}), "reported no memory, on which"),
    ],
)
def test_a_trial_that_does_not_say_what_is_asked_fails(goal, said):
    with pytest.raises(Incomplete, match=said):
        sweep("x=1,2", goal=goal, task=reach_and_cost, max_failure_rate=1.0)
    assert states() == ["FAIL"] * 2
