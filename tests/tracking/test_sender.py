"""What a run recorded on disk arrives at MLflow once, in order, and in the end, whatever the server does meanwhile."""

import itertools
import json
import logging
import time
from pathlib import Path

import pytest

from ghm.tracking import Away, Sender, Spool, Tracker, agree, waiting
from ghm.tracking.sender import Sent, send


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> Tracker:
    return Tracker.open(None, "test", str(tmp_path_factory.mktemp("runs"))).reach()


def record(folder: Path, key: str) -> Spool:
    """A run of two epochs, its files, and its end."""
    spool = Spool(folder)
    spool.start("a run", {"dir": folder}, key=key)
    spool.log_params({"epochs": 2})
    spool.log_text("seed: 0", "config/config.yaml")
    for epoch in (1, 2):
        spool.log_metrics({"val/AP": epoch / 10, "train/loss": 1 / epoch}, epoch, at=1000 * epoch)
    (folder / "last.pt").write_text("weights")
    spool.log_file(folder / "last.pt", "checkpoints")
    spool.finish("done")
    return spool


def arrived(tracker: Tracker, key: str) -> dict[str, object]:
    """All that MLflow holds of a run."""
    run = tracker.find(key)
    assert run is not None
    files = [
        file.path
        for folder in ("config", "checkpoints")
        for file in tracker.client.list_artifacts(run.info.run_id, folder)
    ]
    points = [
        (point.key, point.step, point.value, point.timestamp)
        for name in sorted(run.data.metrics)
        for point in tracker.client.get_metric_history(run.info.run_id, name)
    ]
    return {"points": points, "files": files, "params": run.data.params, "status": run.info.status}


EXPECTED = {
    "points": [
        ("train/loss", 1, 1.0, 1000),
        ("train/loss", 2, 0.5, 2000),
        ("val/AP", 1, 0.1, 1000),
        ("val/AP", 2, 0.2, 2000),
    ],
    "files": ["config/config.yaml", "checkpoints/last.pt"],
    "params": {"epochs": "2"},
    "status": "FINISHED",
}


class Unsteady:
    """A tracker whose call number `fails` is lost: on its way there, or its answer on the way back."""

    def __init__(self, tracker: Tracker, fails: int, after: bool) -> None:
        self.tracker, self.fails, self.after, self.calls = tracker, fails, after, 0

    def begin(self, **values):
        return self._call(lambda: self.tracker.begin(**values))

    def run(self, run_id):
        unsteady, run = self, self.tracker.run(run_id)

        class Run:
            def __getattr__(self, name):
                return lambda *values: unsteady._call(getattr(run, name), *values)

        return Run()

    def _call(self, work, *values):
        self.calls += 1
        if self.calls == self.fails and not self.after:
            raise Away("reset on the way")
        result = work(*values)
        if self.calls == self.fails:
            raise Away("reset on the way back")
        return result


def test_a_call_that_is_lost_anywhere_loses_nothing_and_doubles_nothing(tracker, tmp_path):
    steady = Unsteady(tracker, fails=0, after=False)
    record(tmp_path / "steady", "steady")
    send(tmp_path / "steady", steady)
    assert arrived(tracker, "steady") == EXPECTED
    assert steady.calls >= 5
    for fails, after in itertools.product(range(1, steady.calls + 1), (False, True)):
        key = f"run-{fails}-{after}"
        record(tmp_path / key, key)
        unsteady = Unsteady(tracker, fails, after)
        with pytest.raises(Away):
            send(tmp_path / key, unsteady)
        assert waiting(tmp_path / key)
        send(tmp_path / key, unsteady)
        assert not waiting(tmp_path / key)
        assert arrived(tracker, key) == EXPECTED
        assert len(tracker._search(f"tags.`ghm.key` = '{key}'")) == 1


def test_a_sender_that_was_killed_before_it_noted_its_success_sends_again_and_doubles_nothing(tracker, tmp_path):
    record(tmp_path, "forgot")
    send(tmp_path, tracker)
    (tmp_path / "metrics.sent.json").unlink()
    send(tmp_path, tracker)
    assert arrived(tracker, "forgot") == EXPECTED


def test_nothing_is_asked_of_the_server_when_nothing_is_new_and_a_file_is_sent_when_it_changed(tracker, tmp_path):
    spool = record(tmp_path, "quiet")
    send(tmp_path, tracker)
    counted = Unsteady(tracker, fails=0, after=False)
    send(tmp_path, counted)
    assert counted.calls == 0
    spool.log_file(tmp_path / "last.pt", "checkpoints")
    send(tmp_path, counted)
    assert counted.calls == 0
    (tmp_path / "last.pt").write_text("other weights")
    spool.log_file(tmp_path / "last.pt", "checkpoints")
    send(tmp_path, counted)
    assert counted.calls == 1


def test_all_that_waits_of_a_metric_goes_in_one_call(tracker, tmp_path):
    spool = Spool(tmp_path)
    spool.start("many", {}, key="many")
    for epoch in range(1, 201):
        spool.log_metrics({"val/AP": epoch / 1000, "val/AP50": 0.5}, epoch)
    counted = Unsteady(tracker, fails=0, after=False)
    send(tmp_path, counted)
    assert counted.calls == 3  # its beginning, what is known of it, and 400 points
    run = tracker.find("many")
    assert len(tracker.history(run.info.run_id, "val/AP")) == 200


def test_another_server_gets_the_whole_record(tracker, tmp_path):
    record(tmp_path, "moved")
    send(tmp_path, tracker)
    other = Tracker.open(None, "test", str(tmp_path / "other"))
    Spool(tmp_path, 2).start("a run", {}, key="moved")
    Spool(tmp_path, 2).finish("done")
    send(tmp_path, other)
    assert arrived(other, "moved") == EXPECTED


def test_what_an_older_attempt_still_writes_is_not_sent_and_said(tracker, tmp_path, caplog):
    record(tmp_path, "taken-over")
    Spool(tmp_path, 2).start("a run", {}, key="taken-over")
    Spool(tmp_path, 1).log_metrics({"val/AP": 0.9}, 3)
    Spool(tmp_path, 2).finish("done")
    send(tmp_path, tracker)
    assert arrived(tracker, "taken-over")["points"] == EXPECTED["points"]
    assert "refused what attempt 1 wrote after 2 began" in caplog.text


def test_a_line_that_was_cut_off_spoils_itself_alone(tracker, tmp_path):
    spool = Spool(tmp_path)
    spool.start("torn", {}, key="torn")
    with spool.path.open("a") as file:
        file.write('{"attempt": 1, "metrics": {"val/A')
    send(tmp_path, tracker)
    spool.log_metrics({"val/AP": 0.5}, 1)
    send(tmp_path, tracker)
    assert not waiting(tmp_path)
    assert tracker.history(tracker.find("torn").info.run_id, "val/AP") == [(1, 0.5)]


def test_what_mlflow_never_takes_is_said_and_holds_up_nothing(tracker, tmp_path, caplog):
    spool = Spool(tmp_path)
    spool.start("odd", {}, key="odd")
    spool.log_params({"a\nb": 1})
    spool.log_file(tmp_path / "gone.pt", "checkpoints")
    spool.log_metrics({"val/AP": 0.5}, 1)
    send(tmp_path, tracker)
    assert not waiting(tmp_path)
    assert tracker.history(tracker.find("odd").info.run_id, "val/AP") == [(1, 0.5)]
    assert "MLflow refused an entry" in caplog.text
    assert "gone.pt" in caplog.text


def test_no_secret_is_written(tmp_path):
    spool = Spool(tmp_path)
    spool.start("x", {"error": "http://me:pa55word@host/"}, key="x")
    spool.log_params({"storage": "postgresql://me:pa55word@host/db"})
    spool.log_text("uri: http://me:pa55word@host/", "config/config.yaml")
    assert "pa55word" not in spool.path.read_text()


def test_a_server_that_is_away_holds_nobody_up_and_gets_it_all_later(tracker, tmp_path, caplog):
    away = Tracker.open("http://127.0.0.1:9", "test", str(tmp_path))
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), Sender(away, lambda: [tmp_path / "a"], patience=1):
        record(tmp_path / "a", "later")
    assert time.monotonic() - begun < 10
    assert "the records of 1 runs wait on disk" in caplog.text
    assert "ghm sync" in caplog.text
    with Sender(tracker, lambda: [tmp_path / "a"]):
        pass
    assert arrived(tracker, "later") == EXPECTED


def test_a_disk_that_is_full_for_a_while_stops_no_sender(tracker, tmp_path, monkeypatch):
    full = iter([True, True])
    write = Sent.write

    def refuse(self, folder):
        if next(full, False):
            raise OSError(28, "No space left on device")
        write(self, folder)

    monkeypatch.setattr(Sent, "write", refuse)
    with Sender(tracker, lambda: [tmp_path], patience=20):
        record(tmp_path, "full")
    assert arrived(tracker, "full") == EXPECTED


def test_a_trial_is_sent_as_soon_as_its_sweeps_run_is_there_and_holds_up_no_other(tracker, tmp_path):
    Spool(tmp_path / "0000").start("early", {}, parent="late-sweep", key="early")
    record(tmp_path / "other", "other")
    folders = [tmp_path / "0000", tmp_path / "other"]
    with pytest.raises(Away):
        Sender(tracker, lambda: folders).once()
    assert arrived(tracker, "other") == EXPECTED
    Spool(tmp_path).start("sweep", {}, key="late-sweep")
    Sender(tracker, lambda: [tmp_path, *folders]).once()
    assert [run.data.tags["ghm.key"] for run in tracker.children(tracker.find("late-sweep").info.run_id)] == ["early"]


def test_ghm_sync_sends_what_waits_below_a_folder_a_sweep_before_its_trials(ghm, capsys):
    Spool(Path("runs/sweeps/s")).start("s", {"sweep.name": "s", "sweep.kind": "sweep"}, key="s")
    Spool(Path("runs/sweeps/s/0000")).start("0", {}, parent="s", key="s-0")
    record(Path("runs/single/one"), "one")
    assert ghm("sync") == 0
    assert "Sent: the records of 3 runs below" in capsys.readouterr().out
    assert ghm("sync", "folder=runs/sweeps") == 0
    assert "Sent: the records of 0 runs" in capsys.readouterr().out
    mine = Tracker.open(None, "ghm", "runs")
    assert arrived(mine, "one") == EXPECTED
    assert len(mine.children(mine.find("s").info.run_id)) == 1


def test_the_record_is_made_to_agree_with_the_study(tmp_path):
    ended, zombie, never = (Spool(tmp_path / name) for name in ("ended", "zombie", "never"))
    ended.start("ended", {})
    ended.finish("done")
    zombie.start("zombie", {})
    states = {ended.folder: "done", zombie.folder: "pruned", never.folder: "queued"}
    assert agree(states) == 1
    assert [spool.state() for spool in (ended, zombie, never)] == ["done", "pruned", None]
    last = json.loads(zombie.path.read_text().splitlines()[-1])
    assert (last["finish"], last["state"]) == ("KILLED", "pruned")
    assert agree(states) == 0


def test_what_belongs_to_a_run_that_another_machine_began_waits_for_it_and_joins_it(tracker, tmp_path):
    here, there = Spool(tmp_path / "here"), Spool(tmp_path / "there")
    there.join("joined")
    there.log_metrics({"val/AP": 0.1}, 1, at=1000)
    with pytest.raises(Away, match="not there yet"):
        send(there.folder, tracker)
    here.start("a run", {}, key="joined")
    send(here.folder, tracker)
    send(there.folder, tracker)
    here.finish("done")
    send(here.folder, tracker)
    assert arrived(tracker, "joined") == {
        "points": [("val/AP", 1, 0.1, 1000)],
        "files": [],
        "params": {},
        "status": "FINISHED",
    }


def test_an_epoch_that_another_machine_sent_is_not_sent_again_where_it_was_trained_again(tracker, tmp_path):
    gone, here = Spool(tmp_path / "gone"), Spool(tmp_path / "here", attempt=2)
    gone.start("a run", {}, key="again")
    for epoch in (1, 2):
        gone.log_metrics({"val/AP": epoch / 10}, epoch, at=epoch * 1000)
    send(gone.folder, tracker)
    here.join("again")
    for epoch in (1, 2, 3):
        here.log_metrics({"val/AP": epoch / 10}, epoch, at=epoch * 1000 + 7)
    send(here.folder, tracker)
    points = [("val/AP", 1, 0.1, 1000), ("val/AP", 2, 0.2, 2000), ("val/AP", 3, 0.3, 3007)]
    assert arrived(tracker, "again")["points"] == points


def test_the_files_of_a_run_are_fetched_by_its_key(tracker, tmp_path):
    record(tmp_path / "run", "fetched")
    send(tmp_path / "run", tracker)
    [path] = tracker.download("fetched", "checkpoints", tmp_path)
    assert (path.name, path.read_text()) == ("last.pt", "weights")
    assert tracker.download("nobody", "checkpoints", tmp_path) == []
