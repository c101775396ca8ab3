"""Every pruner that is offered, on learning curves as trainings have them."""

import math

import hydra
import pytest
from hydra.utils import instantiate

from ghm.paths import CONF
from sweeps.ledger import Ledger, create
from sweeps.states import State
from sweeps.storage import open_storage

EPOCHS = 14
PRUNERS = sorted(path.stem for path in (CONF / "hydra/sweeper/pruner").glob("*.yaml"))


def offered(name):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"hydra/sweeper/pruner={name}", f"epochs={EPOCHS}"], return_hydra_config=True)
    return instantiate(cfg.hydra.sweeper.pruner)


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
    ledger = Ledger(study, offered(name))
    usual = [curve(0.30 + 0.01 * (number * 7 % 10)) for number in range(10)]
    for number, values in enumerate([*usual, FALLING, curve(0.5)]):
        ledger.queue(ledger.memory.ask()._trial_id)
        epochs = trained(ledger, number, values)
    stopped = len(ledger.trials[10].epochs)
    assert (stopped == EPOCHS) == (name == "nop"), stopped
    assert epochs == EPOCHS
    assert ledger.best.number == 11
