"""What a sweep would do, said without doing it."""

from pathlib import Path

import pytest

from ghm import plan
from ghm.plan import Past, Planned

TINY = {"model": "retinanet_tiny", "data": "shapes", "loss/cls": "focal", "loss/box": "asl1", "batch_size": "16"}
SMALL = ("epochs=1", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4", "figures=false")


def planned(label: str, state: str = "new", same: str = "", **settings: str) -> Planned:
    return Planned(label, same or label, 10, TINY | settings, state)


def test_time_is_that_of_the_runs_that_are_most_alike():
    known = [Past(TINY, 2.0, 5_000_000), Past(TINY | {"loss/cls": "ghm_c"}, 3.0, 7_000_000), Past({}, 100.0, 0)]
    needs = plan.need([planned("a"), planned("b", **{"loss/cls": "ghm_c"}), planned("c", "done")], known, slots=1)
    assert (needs.wall, needs.work, needs.bytes, needs.other) == (50.0, 50.0, 12_000_000, ())
    other = plan.need([planned("a", **{"data.image_size": "640"})], known, slots=1)
    assert (other.work, other.other) == (20.0, ("data.image_size",))
    assert plan.need([planned("a", model="retinanet_r50")], known, slots=1) is None


def test_a_file_of_two_names_takes_its_place_once(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "last.pt").write_bytes(b"x" * 1000)
    (tmp_path / "best.pt").hardlink_to(tmp_path / "deep" / "last.pt")
    (tmp_path / "other").write_bytes(b"x" * 10)
    assert plan._size(tmp_path) == 1010


def test_seeds_of_a_trial_are_so_many_runs():
    needs = plan.need([Planned("a", "a", 10, TINY, runs=4)], [Past(TINY, 2.0, 5_000_000)], slots=2)
    assert (needs.wall, needs.work, needs.bytes) == (40.0, 80.0, 20_000_000)
    lines = plan.told([Planned("a", "a", 10, TINY, runs=4)], None, needs, 2)
    assert lines[0] == "1 trial: 1 new; 4 seeds of each, unless the race drops it before"


def test_slots_share_the_work_as_they_become_free():
    known = [Past(TINY | {"batch_size": size}, seconds, 0) for size, seconds in (("16", 1.0), ("8", 3.0))]
    jobs = [planned("long", batch_size="8"), *(planned(str(number)) for number in range(3))]
    needs = plan.need(jobs, known, slots=2)
    assert (needs.wall, needs.work) == (30.0, 60.0)


def test_what_is_told_names_states_and_doubles_and_says_that_an_endless_space_is_not_all_here():
    jobs = [planned("x=1", "done"), planned("x=2", same="s"), planned("x=2.0", same="s")]
    lines = plan.told(jobs, None, plan.Need(3700, 7400, 2_000_000, 4), 2)
    assert lines[0] == "3 trials: 1 done, 2 new"
    assert "  x=1  (done)" in lines
    assert "The same training 2 times: x=2; x=2.0" in lines
    assert "Time: about 1 h 1 min with 2 at a time, 2 h 3 min of work; disk: 2 MB" in lines
    endless = plan.told(jobs[1:2], 20, plan.Need(10, 10, 0, 1, ("amp",)), 1)
    assert endless[0] == "20 trials, of which these would be the first 1 as long as nothing is known of any"
    assert endless[-2:] == [
        "Time: about 3 min 20 s with 1 at a time, 3 min 20 s of work; disk: 0 MB",
        "That is by 1 runs that have ended, though of other amp",
    ]


@pytest.mark.usefixtures("cluster")
def test_a_plan_starts_nothing_and_after_the_sweep_says_so_and_what_more_would_take(ghm, capsys):
    swept = (*SMALL, "loss=focal,cross_entropy", "hydra.sweeper.study_name=p")
    assert ghm("plan", *swept) == 0
    shown = capsys.readouterr().out
    assert "2 trials: 2 new" in shown
    assert "Nobody knows yet what they take" in shown
    assert not list(Path("runs").rglob("*"))
    assert ghm("train", "-m", *swept) in (0, 1)
    capsys.readouterr()
    assert ghm("plan", *swept) == 0
    assert "2 trials: 2 done" in capsys.readouterr().out
    assert ghm("plan", *swept[:-1], "seed=1,2", "hydra.sweeper.study_name=more") == 0
    shown = capsys.readouterr().out
    assert "4 trials: 4 new" in shown
    assert "That is by 1 runs that have ended\n" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=ghm,focal", "seed=range(3)"], "n_trials=4: of 6 points so many are run, as the sampler draws them"),
        (["loss=ghm,focal", "seed=range(2)"], ""),  # all
        (["loss=ghm,focal", "loss.cls.weight=range(1,9)"], ""),  # a range that is to be sampled
    ],
)
def test_a_list_of_which_not_all_is_run_is_said_to_be_one(ghm, capsys, words, said):
    assert ghm("plan", *SMALL, *words, "hydra.sweeper.n_trials=4") == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert ("; hydra.sweeper.n_trials=6 runs all\n" in shown) == bool(said)


def test_a_password_in_an_address_is_not_shown(ghm, capsys):
    assert ghm("plan", *SMALL, "seed=1,2", "+note='postgresql://me:secret@host/db'") == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert "2 trials: 2 new" in shown


@pytest.mark.parametrize("words", [["loss=focal,nonsense"], ["loss.cls.bins=0,5"]])
def test_what_cannot_be_trained_is_refused_as_by_the_sweep(ghm, words):
    assert ghm("plan", *SMALL, *words) == 2
