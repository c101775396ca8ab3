"""Every pruner that is offered, on learning curves as trainings have them."""

import math

import pytest
from hydra_plugins.ghm_sweeper.config import FOLDER

from sweeps.ledger import Ledger
from sweeps.states import State
from sweeps.storage import open_storage
from sweeps.studies import create
from tests.bench import pruners

EPOCHS = 14
PRUNERS = sorted(path.stem for path in (FOLDER / "pruner").glob("*.yaml"))


def curve(asymptote):
    """AP after each epoch."""
    return [asymptote * (1 - math.exp(-epoch / 4)) for epoch in range(1, EPOCHS + 1)]


FALLING = [0.05 * math.exp(-epoch / 3) for epoch in range(1, EPOCHS + 1)]  # of a training that unlearns


def trained(ledger, number, values):
    """Epochs that a trial was given."""
    ledger.start(number)
    for epoch, value in enumerate(values, start=1):
        ledger.report(number, epoch, value)
        if epoch < EPOCHS and ledger.prunes(number):
            ledger.end(number, State.PRUNED)
            return epoch
    ledger.end(number, State.DONE, (value,))
    return EPOCHS


@pytest.mark.parametrize("name", PRUNERS)
def test_a_hopeless_trial_is_stopped_early_and_the_best_is_not(name, tmp_path):
    study = create(open_storage(f"sqlite:///{tmp_path}/optuna.db", tmp_path), "s", ["maximize"], tmp_path)
    ledger = Ledger(study, pruners.offered(name, EPOCHS))
    usual = [curve(0.30 + 0.01 * (number * 7 % 10)) for number in range(10)]
    for number, values in enumerate([*usual, FALLING, curve(0.5)]):
        ledger.queue(ledger.memory.ask()._trial_id)
        epochs = trained(ledger, number, values)
    stopped = len(ledger.trials[10].epochs)
    assert (stopped == EPOCHS) == (name == "nop"), stopped
    assert epochs == EPOCHS
    assert ledger.best.number == 11


def test_the_recommended_pruner_finds_as_good_a_winner_in_a_third_of_the_epochs():
    """On 60 recorded curves in ten orders; closer than half the spread over seeds nobody can tell two winners apart."""
    played = [pruners.play(pruners.offered("asha"), seed) for seed in range(pruners.SEEDS)]
    assert sum(one.saved >= 3 and one.lost <= pruners.SPREAD / 2 for one in played) >= 9, played
    kept = pruners.play(pruners.offered("nop"), 0)
    assert (kept.saved, kept.lost) == (1, 0)
