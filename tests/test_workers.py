"""Several workers train what one would: the same images a step, the same density, the same scores."""

from pathlib import Path

import optuna
import pytest
import torch

from ghm.tracking import Tracker
from ghm.training import checkpoint

# SGD, because AdamW's first steps have the size of its rate whatever the gradient's rounding.
RUN = (
    *("train", "epochs=1", "data.train_images=14", "data.val_images=7", "data.image_size=64", "batch_size=4"),
    *("optimizer=sgd", "strength_warmup=2", "device=cpu", "figures=false", "loader_processes=0"),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One worker, four images a step, of which the last holds two."""
    from ghm.cli import main

    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*RUN, "dir=run"])
    return checkpoint.read(folder / "run" / "last.pt")


@pytest.mark.usefixtures("cluster")
def test_two_workers_with_two_images_each_train_what_one_does_with_four(alone, ghm):
    assert ghm(*RUN, "scaling=workers", "scaling.num_workers=2", "dir=runs/shared") == 0
    shared = checkpoint.read(Path("runs/shared/last.pt"))
    for name, value in shared["model"].items():
        torch.testing.assert_close(value, alone["model"][name], rtol=1e-3, atol=2e-5, msg=name)
    for name, value in alone["history"][-1]["metrics"].items():
        if "_gradient_" in name:  # a rounding moves an example over the edge of its region
            assert shared["history"][-1]["metrics"][name] == pytest.approx(value, abs=2e-3), name
        elif name.startswith("train/"):
            assert shared["history"][-1]["metrics"][name] == pytest.approx(value, rel=1e-4), name
        if name.startswith("val/"):
            assert shared["history"][-1]["metrics"][name] == pytest.approx(value, abs=2e-3), name


def test_the_same_seed_gives_the_same_bits_and_another_others(alone, ghm):
    same, other = [], []
    for seed, folder in ((0, "same"), (1, "other")):
        assert ghm(*RUN, f"seed={seed}", f"dir=runs/{folder}") == 0
        content = checkpoint.read(Path(f"runs/{folder}/last.pt"))
        equal = [torch.equal(value, alone["model"][name]) for name, value in content["model"].items()]
        (same if seed == 0 else other).append(all(equal))
    assert (same, other) == ([True], [False])


@pytest.mark.usefixtures("cluster")
def test_a_trial_of_two_workers_is_pruned_at_the_epoch_of_the_verdict(ghm, capsys):
    pruner = ("hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.upper=-1")
    swept = ("loss=focal", "seed=0,1", "scaling=workers", "hydra.sweeper.study_name=s", "hydra.sweeper.n_jobs=2")
    words = [word for word in RUN[1:] if not word.startswith("epochs=")]
    assert ghm("train", "-m", *words, "epochs=3", *swept, *pruner) == 1
    assert "no trial finished" in capsys.readouterr().err
    trials = optuna.load_study(study_name="s", storage="sqlite:///runs/optuna.db").trials
    assert [(trial.state.name, list(trial.intermediate_values)) for trial in trials] == [("PRUNED", [1])] * 2
    tracker = Tracker.open(None, "ghm", "runs")
    [parent] = tracker.sweeps("s")
    children = tracker.children(parent.info.run_id)
    assert [run.data.tags["sweep.state"] for run in children] == ["pruned"] * 2
    assert all(len(tracker.history(run.info.run_id, "val/AP")) == 1 for run in children)
