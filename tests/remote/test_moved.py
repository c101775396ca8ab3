"""A run that goes on where its folder is not: with the later of what is here and what MLflow has, or not at all."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ghm import run
from ghm.failure import Lost
from ghm.remote import moved
from ghm.tracking import Away
from ghm.training import checkpoint
from ghm.training.schedule import one_cycle
from tests.test_job import composed, job


def trained(folder: Path, epochs: int) -> None:
    """A folder with the checkpoints of so many epochs."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = checkpoint.RunState(model, optimizer, one_cycle(optimizer, epochs=9, steps_per_epoch=1))
    for epoch in range(1, epochs + 1):
        state.finish_epoch(epoch, {"val/AP": epoch / 10}, epoch / 10)
        checkpoint.commit(state, folder, 1)


class Kept:
    """A tracker that has the files of a folder, after it was away for some calls."""

    def __init__(self, folder: Path | None, away: int = 0) -> None:
        self.folder, self.away = folder, away

    def download(self, key: str, name: str, target: Path) -> list[Path]:
        assert (key, name) == ("key", "checkpoints")
        self.away -= 1
        if self.away >= 0:
            raise Away("nobody answers")
        return [] if self.folder is None else [Path(shutil.copy(path, target)) for path in self.folder.glob("*t.pt")]


@pytest.fixture
def one():
    plain = job()
    return replace(plain, key=replace(plain.key, record="key"))


@pytest.mark.parametrize(("there", "here", "after"), [(3, 1, 3), (1, 3, 3), (3, 0, 3)])
def test_the_later_checkpoint_is_gone_on_from(one, tmp_path, there, here, after):
    trained(tmp_path / "there", there)
    trained(one.place.folder, here)
    moved._fetch(one, Kept(tmp_path / "there", away=1))
    content = checkpoint.newest(one.place.folder)
    assert content is not None
    assert content["epoch"] == after
    assert [path.name for path in one.place.folder.iterdir() if path.is_dir()] == []


def test_a_run_that_left_nothing_begins(one):
    moved._fetch(one, Kept(None))
    assert checkpoint.newest(one.place.folder) is None


def test_without_an_answer_the_attempt_is_lost_and_not_begun_anew(one, monkeypatch):
    monkeypatch.setattr(moved, "PATIENCE", 0.1)
    with pytest.raises(Lost, match="MLflow, which may hold the run's last checkpoint, does not answer"):
        moved._fetch(one, Kept(None, away=99))


@pytest.mark.parametrize(
    ("here", "uri", "shared"),
    [(0, "http://server", False), (2, "http://server", True), (0, "sqlite:///m.db", True)],
)
def test_a_trial_that_was_trained_on_a_node_that_is_gone_asks_mlflow_for_it(tmp_path, here, uri, shared):
    words = ("trial.name=s", "trial.trial=0", "trial.epochs=2", "trial.record=key", f"tracking.uri={uri}")
    one, cfg = job(*words), composed(*words)
    trained(one.place.folder, here)
    assert run._placed(one, cfg).place.shared == shared


def test_half_a_file_is_passed_over(one, tmp_path, caplog):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "last.pt").write_text("half")
    trained(one.place.folder, 2)
    moved._fetch(one, Kept(tmp_path / "there"))
    assert "going on with what is here" in caplog.text
    assert checkpoint.newest(one.place.folder)["epoch"] == 2
