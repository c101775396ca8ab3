"""Following a job: what it says, what Ctrl-C asks, and how it ends."""

import os
import pty
import sys
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from ghm.failure import Failed
from ghm.verbs.submit import follow


class Job:
    """A cluster with one job, whose log ends with `then`."""

    def __init__(self, then=None, status=JobStatus.SUCCEEDED, code=0):
        self.then, self.status, self.code = then, status, code
        self.stopped = []

    async def tail_job_logs(self, job):
        yield "epoch 1\n"
        if self.then is not None:
            raise self.then

    def get_job_status(self, job):
        return self.status

    def get_job_info(self, job):
        return SimpleNamespace(status=self.status, driver_exit_code=self.code, message="no such folder")

    def stop_job(self, job):
        self.stopped.append(job)


@pytest.fixture
def terminal(monkeypatch):
    """Standard input is a terminal; called with what is typed there."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: os.write(ours, text.encode())
    os.close(ours)


def test_the_exit_code_is_the_jobs(capsys):
    assert follow(Job(), "a") == 0
    assert follow(Job(status=JobStatus.FAILED, code=2), "a") == 2
    assert capsys.readouterr().out == "epoch 1\n" * 2


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(status=JobStatus.STOPPED), "was stopped; the same command, submitted again, goes on"),
        (Job(status=JobStatus.FAILED, code=None), "before its command began: no such folder"),
        (Job(RuntimeError("connection closed")), "does not answer any more .*ghm submit --logs a follows it again"),
        (Job(ConnectionError("refused")), "does not answer any more .*submit the same command"),
    ],
)
def test_another_end_says_what_to_do(job, said):
    with pytest.raises(Failed, match=said):
        follow(job, "a")


@pytest.mark.parametrize(("typed", "stopped"), [("s\n", ["a"]), ("\n", []), ("f\n", [])])
def test_ctrl_c_in_a_terminal_asks_whether_to_stop_the_job(terminal, capsys, typed, stopped):
    job = Job(KeyboardInterrupt())
    terminal(typed)
    assert follow(job, "a") == 130
    assert job.stopped == stopped
    said = capsys.readouterr()
    assert ("Stopping a" in said.out) == bool(stopped)
    assert ("runs on; ghm submit --logs a follows it" in said.err) != bool(stopped)


def test_ctrl_c_without_a_terminal_only_stops_following(capsys, monkeypatch):
    job = Job(KeyboardInterrupt())
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert follow(job, "a") == 130
    assert job.stopped == []
