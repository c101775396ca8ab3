"""A run that dies at any line of what it does to record itself ends, once started again, as if it had not died."""

import logging
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ghm import provenance, run, scoring, worker
from ghm.data import shapes
from ghm.job import Job
from ghm.settings import own_ranges
from ghm.settings.paths import CONF, absolute
from ghm.tracking import Sender, Spool, Tracker
from ghm.tracking import spool as spooling
from ghm.training import checkpoint
from ghm.training.checkpoint import RunState
from ghm.training.schedule import one_cycle
from sweeps.states import Answer, State

VALUES = {1: 0.75, 2: 0.5}  # the last epoch is not the best
CODE = {module.__file__ for module in (provenance, run, worker, checkpoint, spooling)}
READING = {"read", "entries", "key", "attempts", "state", "last_step", "flat", "packages", "<genexpr>", "<dictcomp>"}


class Death(BaseException):
    """What no handler of the code under test takes for anything it knows."""


class Hub:
    """The sweep's end of the line; what it heard."""

    def __init__(self):
        self.heard = {}
        self.report = SimpleNamespace(remote=self._report)

    def _report(self, trial, attempt, epoch, epochs, value, metrics):
        self.heard.setdefault(epoch, value)
        return Answer.GO_ON


@pytest.fixture(scope="module")
def parts():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", ["cwd=.", "dir=run", "epochs=2", "keep=1", "figures=false", "trial.trial=0"])
    own_ranges.take(cfg)
    OmegaConf.resolve(cfg)
    data = shapes(train_images=2, val_images=4, image_size=64)
    return cfg, data, scoring.judge(data.val.coco, scoring.chance(data.val.coco))


def life(folder, parts, hub, at=0):
    """A run as `run.train` and `worker.train_worker` do it, of a model of two numbers; its last state.

    It dies as line number `at` of what records it is reached; how many lines there were.
    """
    cfg, data, judgement = parts
    cfg.dir, cfg.trial.hub, cfg.trial.record = str(folder), "hub", folder.parent.name
    lines = 0

    def watch(frame, event, _):
        nonlocal lines
        if frame.f_code.co_filename not in CODE or frame.f_code.co_name in READING:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise Death(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return watch

    sys.settrace(watch)
    try:
        record_and_train(absolute(cfg), data, judgement)
    finally:
        sys.settrace(None)
    return lines


def record_and_train(cfg, data, judgement):
    job = Job.of(cfg, start=Spool(Path(cfg.dir)).attempts() + 1)
    run._claim(job)
    spool = Spool(job.place.folder, job.key.start)
    run.describe(spool, job, cfg)
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = RunState(model, optimizer, one_cycle(optimizer, epochs=2, steps_per_epoch=1))
    if (content := checkpoint.newest(job.place.folder)) is not None:
        state.take(content)
    recorder = worker._Recorder(job, state, data)
    for epoch in range(state.epoch + 1, 3):
        optimizer.zero_grad()
        model(torch.tensor([[float(epoch)]])).square().sum().backward()
        optimizer.step()
        state.scheduler.step()
        judgement.numbers = {"AP": VALUES[epoch]}
        recorder.epoch(epoch, {"train/loss": 1 / epoch}, judgement, {"classes": {"gradient": [1 / epoch]}})
    recorder.end(None)
    spool.finish(State.DONE)


def ending(folder, hub):
    """All that a run leaves behind, without times and attempts."""
    last, best = (checkpoint.read(folder / name) for name in ("last.pt", "best.pt"))
    entries = [entry for entry in Spool(folder).entries() if entry]
    return {
        "weights": [value.tolist() for value in last["model"].values()],
        "history": [(one["epoch"], one["metrics"]) for one in last["history"]],
        "best": (last["best_epoch"], last["best"], best["epoch"]),
        "files": {path.name for path in folder.glob("*.pt")},
        "heard": hub.heard,
        "params": {str(entry["params"]) for entry in entries if "params" in entry},
        "keys": {entry["start"]["key"] for entry in entries if "start" in entry},
        "points": {
            (key, entry["step"], value)
            for entry in entries
            if "metrics" in entry
            for key, value in entry["metrics"].items()
        },
        "texts": {entry["path"] for entry in entries if "text" in entry},
        "state": Spool(folder).state(),
    }


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(worker, "ray", SimpleNamespace(get_actor=lambda name: hub, get=lambda answer: answer))
    logging.disable(logging.INFO)
    # Slow, and nothing in them is written.
    monkeypatch.setattr(provenance, "source", lambda: {"commit": "a commit", "diff": ""})
    monkeypatch.setattr(provenance, "packages", dict)
    monkeypatch.setattr(scoring, "score", lambda *_: {"AP50": 0.01})
    yield hub
    logging.disable(logging.NOTSET)


def test_a_run_that_dies_at_any_line_of_its_record_ends_like_an_undisturbed_one(parts, hub, tmp_path):
    lines = life(tmp_path / "undisturbed" / "run", parts, hub)
    expected = ending(tmp_path / "undisturbed" / "run", hub)
    assert expected["best"] == (1, 0.75, 1)
    assert expected["heard"] == VALUES
    assert {(step, value) for key, step, value in expected["points"] if key == "val/AP"} == set(VALUES.items())
    assert lines > 200
    for at in range(1, lines + 1):
        hub.heard = {}
        folder = tmp_path / str(at) / "run"
        with pytest.raises(Death) as death:
            life(folder, parts, hub, at)
        life(folder, parts, hub)
        assert ending(folder, hub) == expected | {"keys": {str(at)}}, f"died at {death.value}"


def test_what_died_and_went_on_is_one_run_in_mlflow_with_each_value_once(parts, hub, tmp_path):
    folder = tmp_path / "mended" / "run"
    for at in (10, 60, 90, 120, 90, 120):  # a life that finds much done has fewer lines
        with suppress(Death):
            life(folder, parts, hub, at)
    assert Spool(folder).attempts() > 4
    life(folder, parts, hub)
    tracker = Tracker.open(None, "test", str(tmp_path / "runs"))
    Sender(tracker, lambda: [folder]).once()
    [record] = tracker.client.search_runs([tracker.experiment_id])
    assert record.info.status == "FINISHED"
    assert tracker.history(record.info.run_id, "val/AP") == list(VALUES.items())
    assert record.data.params["epochs"] == "2"
