"""One controller a study, whatever happens to it."""

import logging
import os
import threading
import time
from pathlib import Path

import optuna
import pytest

from sweeps import studies
from sweeps.lease import Lease, LeaseLost
from sweeps.storage import open_storage

PERIOD = 0.5


@pytest.fixture
def study(url, tmp_path):
    return optuna.create_study(study_name="s", storage=open_storage(url, tmp_path))


def lease(study, url):
    """As another process would have it: over connections of its own."""
    storage = open_storage(url, Path("nowhere"))
    return Lease(storage, study._study_id, "s", PERIOD), studies.find(storage, "s")


def stop(held):
    """What SIGSTOP does to a process: it renews nothing."""
    held._ended.set()


def test_a_second_controller_is_told_who_runs_the_study_and_the_next_finds_it_free(study, url):
    first, _ = lease(study, url)
    second, _ = lease(study, url)
    with first:
        begun = time.monotonic()
        with pytest.raises(ValueError, match=rf"study_name=s: is run by process {os.getpid()} on .*, since 20\d\d-"):
            second.__enter__()
        assert time.monotonic() - begun < 2 * PERIOD
    begun = time.monotonic()
    with second:
        assert time.monotonic() - begun < PERIOD


def test_a_stopped_controller_is_replaced_after_two_periods_and_writes_nothing_more(study, url, caplog):
    first, before = lease(study, url)
    second, after = lease(study, url)
    caplog.set_level(logging.INFO)
    first.__enter__()
    before.set_user_attr("said", "by the first")
    stop(first)
    begun = time.monotonic()
    with second:
        assert PERIOD < time.monotonic() - begun < 2 * PERIOD + 1
        assert "taking over if it is not heard of" in caplog.text
        after.set_user_attr("said", "by the second")
        with pytest.raises(LeaseLost, match=r"was taken over by process .* what it still wanted to write was refused"):
            before.set_user_attr("said", "late")
        with pytest.raises(LeaseLost):
            before.tell(before.ask(), 1.0)
        first._ended.clear()  # it wakes up, and looks
        first._renew()
        with pytest.raises(LeaseLost, match="was taken over"):
            first.check()
        first.__exit__()
        after.set_user_attr("said", "by the second again")  # the end of the first took nothing from it
    assert study.user_attrs["said"] == "by the second again"
    assert len(study.trials) == 0


def test_a_machine_that_slept_keeps_a_lease_that_nobody_took(study, url):
    held, own = lease(study, url)
    with held:
        stop(held)
        time.sleep(3 * PERIOD)
        own.set_user_attr("said", "after the sleep")
    assert study.user_attrs["said"] == "after the sleep"


def test_of_many_who_want_a_study_at_once_one_gets_it(study, url):
    got, refused = [], []
    gate = threading.Barrier(4)

    def want(one):
        gate.wait()
        try:
            one.__enter__()
            got.append(one)
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=want, args=(lease(study, url)[0],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)
    got[0].__exit__()


def test_an_error_inside_gives_the_lease_back(study, url, caplog):
    caplog.set_level("INFO")
    first, _ = lease(study, url)
    with pytest.raises(RuntimeError), first:
        raise RuntimeError
    with lease(study, url)[0]:
        assert "taking over" not in caplog.text  # which is said before it waits for another's to run out
