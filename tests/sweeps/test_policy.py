"""What a sweep does next, from plain values: no Ray, no database."""

import pytest

from sweeps import policy
from sweeps.policy import Change, End, Rules
from sweeps.replicates import Replicates
from sweeps.states import Answer, State
from sweeps.trials import Run, Trial

RULES = Rules(n_trials=4, max_failure_rate=0.25, max_attempts=3, backoff=5, patience=60)


def trial(number=0, state=State.RUNNING, **about) -> Trial:
    return Trial(number, {"x": number}, state, **about)


@pytest.mark.parametrize(
    ("attempt", "end", "told", "becomes"),
    [
        (1, End(values=(0.5,)), Answer.GO_ON, Change(State.DONE, 1, values=(0.5,))),
        (2, End(values=(0.5,)), Answer.PRUNE, Change(State.PRUNED, 2, values=(0.5,))),
        (2, End(values=(0.5,)), Answer.DRAIN, Change(State.QUEUED, 2)),
        (1, End(error="Traceback\nE: no"), Answer.GO_ON, Change(State.FAILED, 1, error="Traceback\nE: no")),
        (1, End(lost="killed"), Answer.GO_ON, Change(State.QUEUED, 2, error="killed", wait=5)),
        (2, End(lost="killed"), Answer.DRAIN, Change(State.QUEUED, 3, error="killed", wait=10)),
        (
            3,
            End(lost="killed"),
            Answer.GO_ON,
            Change(State.FAILED, 3, error="attempt 3 of 3 was lost: killed", spent=True),
        ),
        (
            1,
            End(values=(float("nan"),)),
            Answer.GO_ON,
            Change(State.FAILED, 1, error="its objective is not a number (nan)"),
        ),
    ],
)
def test_what_becomes_of_a_run(attempt, end, told, becomes):
    assert policy.after(Run(attempt=attempt), end, told, RULES) == becomes


@pytest.mark.parametrize(
    ("epoch", "prunes", "draining", "said"),
    [
        (3, False, False, Answer.GO_ON),
        (3, True, False, Answer.PRUNE),
        (3, False, True, Answer.DRAIN),
        (3, True, True, Answer.PRUNE),  # a result is worth more than a trial to go on with
        (2, True, True, Answer.GO_ON),  # said again on the way to epoch 3
        (5, True, True, Answer.GO_ON),  # it ends by itself
    ],
)
def test_how_an_epoch_is_answered(epoch, prunes, draining, said):
    assert policy.answer(Run(epochs=max(epoch, 3)), epoch, 5, prunes, draining) == said


def due(trials, waits=None, now=0.0, replicates=1, wide=False, ahead=False):
    return policy.due(trials, waits or {}, now, Replicates(replicates), wide, ahead)


def test_the_first_queued_trial_goes_on_once_it_has_waited():
    trials = [trial(0, State.DONE), begun(1, 0), trial(2, State.QUEUED), trial(3, State.QUEUED)]
    assert due(trials, {2: 10.0}, now=9.0) == (trials[3], 0)
    assert due(trials, {2: 10.0}, now=10.0) == (trials[2], 0)
    assert due(trials[:2]) is None


def begun(number, *running, done=0) -> Trial:
    """A trial of which the first `done` runs have ended."""
    runs = {one: Run(values=(0.5,)) for one in range(done)} | {one: Run(running=True) for one in running}
    return trial(number, State.RUNNING if running else State.QUEUED, runs=runs)


def test_a_trial_that_was_begun_is_brought_to_its_end_before_the_next_or_in_a_finite_space_all_are_run_once():
    trials = [begun(0, done=2), begun(1, done=1), begun(2)]
    assert due(trials, replicates=3) == (trials[0], 2)
    assert due(trials, replicates=3, wide=True) == (trials[2], 0)
    assert due(trials[:2], replicates=3, wide=True) == (trials[1], 1)


def test_seeds_of_a_trial_run_side_by_side_only_in_slots_that_would_be_idle():
    trials = [begun(0, 1, done=1), begun(1, 0)]
    assert due(trials, replicates=3) is None
    assert due(trials, replicates=3, ahead=True) == (trials[0], 2)
    assert due(trials, replicates=3, wide=True, ahead=True) == (trials[1], 1)
    assert due(trials, {2: 10.0}, now=9.0, replicates=3, ahead=True) == (trials[1], 1)


def test_only_what_tasks_raise_counts_as_failure_and_in_a_finite_space_every_gap_counts():
    raised, lost = trial(0, State.FAILED), trial(1, State.FAILED, spent=True)
    assert policy.failures([raised, lost], RULES) == []  # one of four may
    assert policy.failures([raised, lost, trial(2, State.FAILED)], RULES) == [raised, trial(2, State.FAILED)]
    assert policy.missing([raised, lost, trial(2, State.DONE)], finite=True) == [raised, lost]
    assert policy.missing([raised, lost, trial(2, State.DONE)], finite=False) == [lost]
