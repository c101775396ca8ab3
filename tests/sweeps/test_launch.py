"""The engine on a toy task, over real Ray, Optuna and MLflow."""

import re
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from ghm.tracking import SAME, Spool, Tracker
from ghm.tracking.sender import send
from sweeps.budget import Budget
from sweeps.controller import SweepFailed
from sweeps.draw import Search
from sweeps.goal import Goal
from sweeps.grammar import parse
from sweeps.launch import Incomplete, Program, Sweep, run_sweep
from sweeps.replicates import Replicates
from sweeps.slots import Resources
from sweeps.states import State
from tests.sweeps.tasks import Absent, parabola
from tests.sweeps.toy import LOADER

pytestmark = pytest.mark.usefixtures("cluster")


def sweep(*arguments: str, pruner=None, seconds: float = 0, task=parabola, returns=2, **changes):
    runs = changes.get("runs", Path("runs").resolve())
    tracker = changes.pop("tracker", None) or Tracker.open(None, "toy", str(runs))
    settings = {"name": "toy", "folder": runs / "sweeps" / "toy", "runs": runs}
    settings |= {"goal": Goal(("value",), ("maximize",)), "n_trials": 4, "n_jobs": 2, "max_failure_rate": 0.0}
    settings |= {"storage": None, "resources": Resources(0.5, 0), "backoff": 0.1, "lease": 1} | changes
    first, same = settings.pop("first", []), settings.pop("same", False)

    def keys(params, seed):
        return [f"x is {params['x']}"] if same else []

    def compose(number, params, label, context):
        if params["x"] == 99:
            raise ValueError("x=99: cannot be")
        own = {"dir": context["folder"], "trial": context["run"], "seconds": seconds, "x": 0}
        own |= {"seed": context["seed"] or 0}
        own |= {"returns": returns}
        return OmegaConf.create(own | params | {"hub": context["hub"], "attempt": context["attempt"]})

    return run_sweep(
        Sweep(**settings),
        search(*(arguments or ["x=interval(0.0,2.0)"]), pruner=pruner, first=first),
        Program(task, compose, keys),
        tracker,
    )


def search(*arguments: str, pruner=None, first=()) -> Search:
    space = parse(list(arguments), {}, {}, LOADER)

    def sampler(number, again):
        return optuna.samplers.RandomSampler(seed=100 * number + again)

    return Search(space, sampler, pruner or optuna.pruners.NopPruner(), list(first))


def known(x: int, epochs: int = 5) -> None:
    """A run that is recorded as done in MLflow, of the toy at this x."""
    spool = Spool(Path("known") / str(x))
    spool.start(f"run at {x}", {SAME: f"x is {x}"})
    for epoch in range(1, epochs + 1):
        spool.log_metrics({"value": -float(x) * epoch, "size": float(x)}, epoch)
    spool.finish(State.DONE)
    send(spool.folder, Tracker.open(None, "toy", "runs"))


def study() -> optuna.Study:
    return optuna.load_study(study_name="toy", storage=f"sqlite:///{Path('runs').resolve()}/optuna.db")


def states() -> list[str]:
    return [trial.state.name for trial in study().trials]


def parent_status() -> str:
    [record] = Tracker.open(None, "toy", "runs").sweeps("toy")
    return record.info.status


def test_a_sweep_runs_every_trial_and_returns_the_best():
    best = sweep()
    values = [trial.value for trial in study().trials]
    assert states() == ["COMPLETE"] * 4
    assert best == max(values)
    assert all(trial.intermediate_values for trial in study().trials)
    assert parent_status() == "FINISHED"
    written = OmegaConf.load("runs/sweeps/toy/optimization_results.yaml")  # as Hydra's own sweeper does
    assert (written.best_value, dict(written.best_params)) == (best, study().best_params)


def test_the_same_command_again_runs_nothing_and_a_larger_one_only_the_rest():
    sweep()
    first = [trial.params for trial in study().trials]
    sweep()
    sweep(n_trials=6)
    assert states() == ["COMPLETE"] * 6
    assert [trial.params for trial in study().trials][:4] == first
    ran = [path.read_text() for path in sorted(Path("runs/sweeps/toy").glob("*/ran"))]
    assert ran == ["once\n"] * 6


@pytest.mark.parametrize(
    ("params", "message"), [({"y": 1}, "y=1: the key is not swept"), ({"x": 5.0}, "x=5.0: not among the values swept")]
)
def test_settings_given_by_hand_that_cannot_be_are_refused_at_the_start(params, message):
    with pytest.raises(ValueError, match=f"hydra.sweeper.enqueue: {message}"):
        sweep(first=[params])
    with pytest.raises(KeyError):
        study()


@pytest.mark.parametrize("name", ["it's", "a/b", ""])
def test_a_name_that_cannot_be_searched_for_is_refused(name):
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.study_name="):
        sweep(name=name)


def test_a_failing_trial_ends_the_sweep_unless_failures_are_allowed():
    with pytest.raises(SweepFailed, match=r"max_failure_rate=0\.0(.|\n)*below zero"):
        sweep("x=-1,1,2,3", n_jobs=1)
    assert states()[0] == "FAIL"
    assert study().user_attrs["used"]["seconds"] > 0  # of a budget that a later command may set
    assert "RUNNING" not in states()
    assert parent_status() == "FAILED"
    with pytest.raises(Incomplete, match=r"1 of 4 points are missing: trial 0, x=-1: .*below zero.*ghm retry toy"):
        sweep("x=-1,1,2,3", max_failure_rate=0.5)
    assert states() == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "below zero" in study().trials[0].user_attrs["error"]
    assert parent_status() == "FAILED"


def test_settings_that_do_not_compose_fail_their_own_trial_alone():
    with pytest.raises(Incomplete, match=r"1 of 3 points are missing: trial 1, x=99: ValueError: x=99: cannot be"):
        sweep("x=1,99,2", max_failure_rate=0.5)
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_task_that_a_process_cannot_import_says_so_at_once():
    with pytest.raises(SweepFailed, match="No module named 'mine'"):
        sweep("x=1,2", n_jobs=1, task=Absent())
    assert states()[0] == "FAIL"
    assert study().trials[0].user_attrs["attempt"] == 1


def test_a_process_that_dies_is_tried_again_and_takes_only_its_own_trial_along():
    with pytest.raises(Incomplete, match=r"1 of 3 points are missing: trial 0, x=101: attempt 2 of 2 was lost"):
        sweep("x=101,1,2", n_jobs=1, max_attempts=2)
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "its process died" in study().trials[0].user_attrs["error"]
    assert Path("runs/sweeps/toy/0000/ran").read_text() == "once\n" * 2
    tracker = Tracker.open(None, "toy", "runs")
    [parent] = tracker.sweeps("toy")
    (dead,) = tracker.children(parent.info.run_id)  # the toy task itself records nothing
    assert dead.info.status == "FAILED"
    assert dead.data.tags["sweep.trial"] == "0"
    assert "its process died" in dead.data.tags["error"]


def test_what_is_no_fault_of_a_trial_is_its_next_attempt(capsys):
    sweep("x=102,103,104", patience=4)
    assert states() == ["COMPLETE"] * 3
    assert [trial.user_attrs["attempt"] for trial in study().trials] == [2, 2, 2]
    assert [path.read_text() for path in sorted(Path("runs/sweeps/toy").glob("*/ran"))] == ["once\n" * 2] * 3
    shown = capsys.readouterr().out
    # On a machine that is busy the stopped process may have ended itself, as nobody answered it in time either.
    assert re.search(r"trial 0 lost: its process (gave no sign of life for 4 s|died \(\w+\)); attempt 2 follows", shown)
    assert "trial 1 lost: the disk is full ([Errno 28] No space left on device)" in shown
    assert "trial 2 lost: out of memory" in shown


def test_a_drained_sweep_stops_each_trial_at_its_epoch_and_goes_on(monkeypatch):
    from sweeps.controller import Controller

    answered = Controller._answer

    def draining(self, report):
        if not self.draining:
            self.drain()
        answered(self, report)

    monkeypatch.setattr(Controller, "_answer", draining)
    with pytest.raises(KeyboardInterrupt):
        sweep(n_jobs=1)
    begun, composed = study().trials
    assert (begun.state.name, list(begun.intermediate_values), composed.state.name) == ("WAITING", [1], "WAITING")
    assert parent_status() == "KILLED"
    monkeypatch.setattr(Controller, "_answer", answered)
    sweep(n_jobs=1)
    assert states() == ["COMPLETE"] * 4
    assert study().trials[0].user_attrs["attempt"] == 1


def test_two_people_with_one_study_name_on_one_server_never_touch_each_others_runs(tmp_path):
    server = Tracker.open(None, "toy", str(tmp_path / "server"))
    for person in ("one", "other"):
        runs = (tmp_path / person / "runs").resolve()
        settings = {"runs": runs, "folder": runs / "sweeps" / "toy", "tracker": server}
        for _ in range(2):
            with pytest.raises(Incomplete):
                sweep("x=-1,1", max_failure_rate=1.0, **settings)
    parents = server.sweeps("toy")
    assert [parent.info.status for parent in parents] == ["FAILED", "FAILED"]
    for parent in parents:  # of the toy's trials, the failed one is recorded
        [failed] = server.children(parent.info.run_id)
        assert (failed.info.status, failed.data.tags["sweep.state"]) == ("FAILED", "failed")


def test_a_pruned_trial_is_stopped_early_and_told_apart():
    # Worse than -9 for the first time at epoch 3 of 5, and stopped there.
    sweep("x=1.0,3.0", pruner=optuna.pruners.ThresholdPruner(lower=-9), n_jobs=1)
    pruned = study().trials[1]
    assert states() == ["COMPLETE", "PRUNED"]
    assert pruned.intermediate_values == {1: -4.0, 2: -8.0, 3: -12.0}


def test_an_interrupted_sweep_leaves_nothing_running_and_goes_on(monkeypatch):
    from sweeps.controller import Controller

    answered = Controller._answer

    def interrupt(self, report):
        raise KeyboardInterrupt

    monkeypatch.setattr(Controller, "_answer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(seconds=1)
    assert set(states()) <= {"WAITING", "COMPLETE"}
    assert parent_status() == "KILLED"
    monkeypatch.setattr(Controller, "_answer", answered)
    sweep()
    assert states() == ["COMPLETE"] * 4
    assert parent_status() == "FINISHED"


def test_what_others_ran_counts_at_no_cost_and_within_the_bounds():
    for x in (2, 3, 4):
        known(x)
    goal = Goal(("value",), ("maximize",), at_most={"size": 3.5})
    best = sweep("x=2,3,4", same=True, budget=Budget(epochs=1), goal=goal)
    assert best == -10.0
    trials = study().trials
    assert [trial.values for trial in trials] == [[-10.0], [-15.0], [-20.0]]
    assert trials[1].intermediate_values == {epoch: -3.0 * epoch for epoch in range(1, 6)}
    assert [trial.system_attrs["constraints"] for trial in trials] == [[-1.5], [-0.5], [0.5]]
    assert not ran()
    [parent] = Tracker.open(None, "toy", "runs").sweeps("toy")
    children = Tracker.open(None, "toy", "runs").children(parent.info.run_id)
    assert [one.data.tags["sweep.state"] for one in children] == ["done"] * 3
    assert sweep("x=2,3,4", same=True, budget=Budget(epochs=1), goal=goal) == -10.0  # read back


def test_a_sampler_is_told_what_others_ran():
    """Of points that the space draws by itself, one is known and the rest is run."""
    drawn = [trial.params["x"] for trial in _drawn("x=range(0,50)", 4)]
    known(drawn[1])
    sweep("x=range(0,50)", same=True)
    assert len(ran()) == 3
    assert study().trials[1].value == -5.0 * drawn[1]
    assert [trial.params["x"] for trial in study().trials] == drawn


def _drawn(argument: str, count: int) -> list[optuna.trial.FrozenTrial]:
    """What a sweep draws that runs all."""
    runs = Path("elsewhere").resolve()
    sweep(argument, n_trials=count, runs=runs, folder=runs / "toy", n_jobs=1)
    return optuna.load_study(study_name="toy", storage=f"sqlite:///{runs}/optuna.db").trials


def ran() -> dict[str, int]:
    """How often each run was begun, by its folder."""
    found = sorted(Path("runs/sweeps/toy").rglob("ran"))
    return {str(path.parent.relative_to("runs/sweeps/toy")): path.read_text().count("once") for path in found}


def test_seeds_of_a_trial_are_runs_below_it_whose_mean_counts_and_who_is_far_behind_runs_twice():
    best = sweep("x=1,2,9", replicates=Replicates(4, first=1), n_jobs=1)
    assert best == pytest.approx(-0.025)  # x=1, less .01 a seed, of seeds 1 to 4
    first, second, far = study().trials
    assert [trial.state.name for trial in (first, second, far)] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert far.user_attrs["error"] == "out of the race: 64 behind trial 0 over 2 seeds"
    assert [kept["values"] for kept in first.user_attrs["runs"].values()] == [[-0.01], [-0.02], [-0.03], [-0.04]]
    assert set(first.intermediate_values) == {1, 2, 3, 4, 5}  # of the first seed
    started = {
        f"000{trial}/seed-{seed}": 1 for trial, seeds in ((0, 4), (1, 2), (2, 2)) for seed in range(1, seeds + 1)
    }
    assert ran() == started
    tracker = Tracker.open(None, "toy", "runs")
    children = tracker.children(tracker.sweeps("toy")[0].info.run_id)
    assert [one.data.tags["sweep.state"] for one in children] == ["done", "pruned", "pruned"]


def test_a_sweep_of_seeds_that_is_ended_anywhere_goes_on_where_it_was(monkeypatch):
    from sweeps.controller import Controller

    settings = {"replicates": Replicates(3, race=0), "n_jobs": 1, "n_trials": 2}
    answered, reports = Controller._answer, []

    def draining(self, report):
        reports.append(report)
        if len(reports) in (7, 21):  # in the first trial's and the second's second run
            self.drain()
        answered(self, report)

    monkeypatch.setattr(Controller, "_answer", draining)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sweep("x=1,2", **settings)
    assert sweep("x=1,2", **settings) == pytest.approx(-0.01)
    assert states() == ["COMPLETE"] * 2
    assert [trial.value for trial in study().trials] == pytest.approx([-0.01, -1.01])
    assert sum(ran().values()) == 6 + 2
    assert sweep("x=1,2", **settings) == pytest.approx(-0.01)
    assert sum(ran().values()) == 6 + 2
    with pytest.raises(ValueError, match="with other seeds"):
        sweep("x=1,2", **settings | {"replicates": Replicates(4)})


def test_a_seed_that_raises_fails_its_trial_alone():
    with pytest.raises(Incomplete, match=r"1 of 2 points are missing: trial 0, x=-1: .*below zero"):
        sweep("x=-1,1", replicates=Replicates(2, race=0), max_failure_rate=1, n_jobs=1)
    assert states() == ["FAIL", "COMPLETE"]
    assert ran() == {"0000/seed-0": 1, "0001/seed-0": 1, "0001/seed-1": 1}


def test_seeds_that_are_lost_are_tried_again_each_for_itself():
    sweep("x=104,1", replicates=Replicates(2, race=0), n_jobs=2)
    assert states() == ["COMPLETE"] * 2
    assert ran() == {"0000/seed-0": 2, "0000/seed-1": 2, "0001/seed-0": 1, "0001/seed-1": 1}
    assert study().trials[0].user_attrs["runs"]["1"]["attempt"] == 2


def test_a_free_slot_is_refilled_while_a_long_trial_runs():
    """A batch of two would have to wait for the long trial; here all short ones end before it."""
    runs = Path("runs").resolve()
    ended = []

    def compose(number, params, label, context):
        told = {"attempt": context["attempt"], "hub": context["hub"]}
        own = {
            "dir": str(runs / str(number)),
            "trial": number,
            "x": 1,
            "seed": 0,
            "seconds": 6 if params["x"] == 0 else 0.1,
        }
        return OmegaConf.create(own | told)

    from sweeps.view import View

    class Recorder(View):
        def ended(self, ledger, trial):
            ended.append(trial.number)
            super().ended(ledger, trial)

    import sweeps.launch

    before, sweeps.launch.View = sweeps.launch.View, Recorder
    try:
        run_sweep(
            Sweep("toy", runs / "toy", runs, Goal(("value",), ("maximize",)), 6, 2, None, 0.0, Resources(0.5, 0)),
            search("x=0,1,2,3,4,5"),
            Program(parabola, compose),
            Tracker.open(None, "toy", str(runs)),
        )
    finally:
        sweeps.launch.View = before
    assert ended[-1] == 0
    assert len(ended) == 6


def test_more_slots_than_the_cluster_holds_are_refused():
    with pytest.raises(ValueError, match=r"n_jobs=9: 9 times 0\.5 CPU do not fit the 4"):
        sweep(n_jobs=9)
    with pytest.raises(KeyError):
        study()
