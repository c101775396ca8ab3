"""What a checkpoint holds, that it is whole or not there, and that it runs no code."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ghm.losses import GHMC
from ghm.training.checkpoint import RunState, adopt, commit, newest, read
from ghm.training.schedule import multi_step, one_cycle


class Classifier(nn.Module):
    """A model with a loss that has a state, and an optimizer state worth keeping."""

    def __init__(self):
        super().__init__()
        self.layer, self.loss = nn.Linear(3, 2), GHMC(bins=5, strength_warmup=4)

    def forward(self, x, y):
        return self.loss(self.layer(x), y)


def run(seed, schedule=multi_step):
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    extra = {"milestones": [1]} if schedule is multi_step else {}
    return RunState(model, optimizer, schedule(optimizer, epochs=4, steps_per_epoch=3, **extra))


def train(state, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(6, 3, generator=generator)
        state.optimizer.zero_grad()
        state.model(x, (x[:, :2] > 0).float()).backward()
        state.optimizer.step()
        state.scheduler.step()


@pytest.mark.parametrize("schedule", [one_cycle, multi_step])
def test_a_loaded_run_continues_bit_for_bit(tmp_path, schedule):
    unbroken, first, second = (run(seed, schedule) for seed in (0, 0, 1))
    train(unbroken, range(8))
    train(first, range(4))
    first.save(tmp_path / "last.pt")
    second.load(tmp_path / "last.pt")
    train(second, range(4, 8))
    expected = unbroken.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.model.state_dict().items())
    assert second.scheduler.get_last_lr() == unbroken.scheduler.get_last_lr()


def test_epoch_best_and_metrics_come_back(tmp_path):
    state, other = run(0), run(1)
    state.finish_epoch(1, {"val/AP": 0.25, "train/loss": 1.5}, 0.25)
    state.finish_epoch(2, {"val/AP": 0.125, "train/loss": 1.25}, 0.125)
    state.save(tmp_path / "last.pt")
    other.load(tmp_path / "last.pt")
    assert (other.epoch, other.best, other.best_epoch) == (2, 0.25, 1)
    assert other.history == state.history
    assert [one["metrics"]["train/loss"] for one in other.history] == [1.5, 1.25]


def test_an_epoch_done_again_replaces_what_it_came_to_before():
    state = run(0)
    for epoch, value in ((1, 0.5), (2, 0.25), (2, 0.75)):
        state.finish_epoch(epoch, {"val/AP": value}, value)
    assert [(one["epoch"], one["metrics"]["val/AP"]) for one in state.history] == [(1, 0.5), (2, 0.75)]
    assert (state.best, state.best_epoch) == (0.75, 2)


def test_a_checkpoint_of_an_older_version_can_be_continued(tmp_path):
    state = run(0)
    state.epoch, state.best = 3, 0.5
    state.save(tmp_path / "last.pt")
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    for name in ("history", "best_epoch"):
        del content[name]
    torch.save(content | {"metrics": {"val/AP": 0.5}}, tmp_path / "last.pt")
    other = run(1)
    other.load(tmp_path / "last.pt")
    assert (other.epoch, other.best) == (3, 0.5)
    assert [(one["epoch"], one["metrics"]) for one in other.history] == [(3, {"val/AP": 0.5})]


def test_a_new_run_has_finished_nothing_and_beaten_nothing():
    state = run(0)
    assert (state.epoch, state.best, state.history) == (0, float("-inf"), [])


def test_the_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "last.pt"
    run(0).save(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    state = run(0)
    state.epoch = 1
    state.save(path)
    before = path.read_bytes()
    state.finish_epoch(2, {"val/AP": lambda: 0.5}, 0.5)  # type: ignore[dict-item]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        state.save(path)
    assert path.read_bytes() == before
    # And the next good save is not hindered by what the failed one left.
    state.finish_epoch(2, {"val/AP": 0.5}, 0.5)
    state.save(path)
    other = run(1)
    other.load(path)
    assert other.history[-1]["metrics"] == {"val/AP": 0.5}


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    state = run(0)
    state.save(path)
    before, seen = path.read_bytes(), []
    real = torch.save

    def watched(content, file):
        real(content, file)
        seen.append(path.read_bytes() == before)

    monkeypatch.setattr(torch, "save", watched)
    state.epoch = 1
    state.save(path)
    assert seen == [True]
    assert path.read_bytes() != before


def test_last_and_best_lie_side_by_side(tmp_path):
    state = run(0)
    for epoch, name in ((1, "best.pt"), (2, "last.pt")):
        state.epoch = epoch
        state.save(tmp_path / name)
    state.load(tmp_path / "best.pt")
    assert state.epoch == 1


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"model": payload}])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, wrap):
    trace = tmp_path / "executed"
    torch.save(wrap(Payload(trace)), tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"^checkpoint=.*last.pt: cannot be read \(Weights only load failed"):
        run(0).load(tmp_path / "last.pt")
    assert not trace.exists()


def test_a_file_for_another_model_is_refused(tmp_path):
    state, other = run(0), run(1)
    state.save(tmp_path / "last.pt")
    other.model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load(tmp_path / "last.pt")


# Several checkpoints in a folder


def kept(folder):
    return {path.name for path in folder.iterdir()}


def epochs(folder, count, keep_last=2, best=()):
    state = run(0)
    for epoch in range(1, count + 1):
        train(state, [epoch])
        state.finish_epoch(epoch, {}, epoch if epoch in best else 0)
        commit(state, folder, keep_last)
    return state


def test_the_newest_and_the_best_are_kept(tmp_path):
    epochs(tmp_path, 5, keep_last=2, best=(1, 3))
    assert kept(tmp_path) == {"epoch-0004.pt", "epoch-0005.pt", "last.pt", "best.pt"}
    assert [read(tmp_path / name)["epoch"] for name in ("last.pt", "best.pt")] == [5, 3]


def test_many_epochs_stay_in_order(tmp_path):
    state = epochs(tmp_path, 2)
    for epoch in (9, 10, 11, 99, 100):
        state.finish_epoch(epoch, {}, epoch)
        commit(state, tmp_path, 3)
    assert kept(tmp_path) == {"epoch-0011.pt", "epoch-0099.pt", "epoch-0100.pt", "last.pt", "best.pt"}


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """One bit in the middle of the weights."""
    content = bytearray(path.read_bytes())
    place = content.index(read(path)["model"]["layer.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, flipped, emptied])
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog, damage):
    expected = epochs(tmp_path, 2).model.state_dict()
    epochs(tmp_path, 3)
    damage(tmp_path / "epoch-0003.pt")  # and last.pt, another name of the same file
    state = run(1)
    state.take(newest(tmp_path))
    assert state.epoch == 2
    assert all(torch.equal(value, expected[name]) for name, value in state.model.state_dict().items())
    assert "epoch-0003.pt: cannot be read" in caplog.text
    assert "falling back to the one before" in caplog.text


def test_a_folder_in_which_nothing_can_be_read_is_not_begun_anew(tmp_path):
    epochs(tmp_path, 2)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^dir=.*: holds 3 checkpoints, none of them readable"):
        newest(tmp_path)


def test_a_folder_without_checkpoints_starts_at_the_beginning(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


def test_last_alone_is_enough(tmp_path):
    epochs(tmp_path, 2)
    for path in tmp_path.glob("epoch-*.pt"):
        path.unlink()
    state = run(0)
    state.take(newest(tmp_path))
    assert state.epoch == 2


def test_where_files_have_one_name_only_they_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr("os.link", refuse)
    epochs(tmp_path, 2, best=(2,))
    assert kept(tmp_path) == {"epoch-0001.pt", "epoch-0002.pt", "last.pt", "best.pt"}
    assert read(tmp_path / "last.pt")["epoch"] == 2


def test_a_checkpoint_of_another_program_is_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt: was not written by ghm train"):
        run(0).load(tmp_path / "last.pt")


def test_scale_and_average_come_back(tmp_path):
    state, other = run(0), run(1)
    for each in (state, other):
        each.scaler, each.average = torch.amp.GradScaler("cpu"), AveragedModel(each.model)
    state.scaler.scale(torch.ones(()))
    state.scaler.update(128.0)
    state.average.update_parameters(state.model)
    state.recipe = {"model": {"_target_": "ghm.models.retinanet_tiny"}, "class_names": ["a"]}
    state.save(tmp_path / "last.pt")
    other.load(tmp_path / "last.pt")
    assert other.scaler.get_scale() == 128
    assert torch.equal(other.average.module.layer.weight, state.model.layer.weight)
    assert other.average.n_averaged == 1
    assert other.recipe == state.recipe


def test_the_newest_epoch_is_that_of_the_highest_number(tmp_path):
    state = run(0)
    for epoch in (9999, 10000):
        state.finish_epoch(epoch, {}, 0)
        commit(state, tmp_path, 2)
    (tmp_path / "last.pt").unlink()
    found = run(1)
    found.take(newest(tmp_path))
    assert found.epoch == 10000
    state.finish_epoch(10001, {}, 0)
    commit(state, tmp_path, 2)
    assert {path.name for path in tmp_path.glob("epoch-*.pt")} == {"epoch-10000.pt", "epoch-10001.pt"}


@pytest.mark.parametrize(("there", "here", "after"), [(3, 0, 3), (3, 2, 3), (2, 3, 3), (0, 2, 2)])
def test_a_run_goes_on_from_the_later_of_its_checkpoints_here_and_elsewhere(tmp_path, there, here, after):
    for folder, epochs in (("there", there), ("here", here)):
        state = run(0)
        for epoch in range(1, epochs + 1):
            state.finish_epoch(epoch, {"AP": 1 / epoch}, 1 / epoch)
            commit(state, tmp_path / folder, 2)
    (tmp_path / "here").mkdir(exist_ok=True)
    adopt(sorted((tmp_path / "there").glob("*t.pt")), tmp_path / "here")
    content = newest(tmp_path / "here")
    assert content is not None
    assert (content["epoch"], content["best_epoch"]) == (after, 1)
    assert read(tmp_path / "here" / "best.pt")["epoch"] == 1


def test_what_was_fetched_and_is_no_checkpoint_is_not_taken(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "last.pt").write_text("half a file")
    with pytest.raises(ValueError, match="cannot be read"):
        adopt([tmp_path / "there" / "last.pt"], tmp_path)
    assert newest(tmp_path) is None
