"""What each pruner saves, and what it loses, on 60 recorded learning curves: `python -m tests.bench.pruners`.

curves.csv holds val/AP after each epoch of `ghm train -m loss=ghm,focal,cross_entropy` with learning rate, loss weight
and weight decay drawn at random (27 epochs of 512 drawn images of 64 pixels, retinanet_tiny). They are played to a
pruner in ten orders, two trials at a time.
"""

import csv
import random
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path

import optuna
from hydra_plugins.ghm_sweeper.config import FOLDER
from omegaconf import OmegaConf
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from ghm.settings import targets

with (Path(__file__).resolve().parents[1] / "sweeps" / "curves.csv").open() as file:
    CURVES = [[float(value) for value in row[4:]] for row in list(csv.reader(file))[1:]]
EPOCHS, SEEDS = len(CURVES[0]), 10
SPREAD = 0.023  # of val/AP over seeds at this size: trials that are closer than half of it cannot be told apart
BEST = max(curve[-1] for curve in CURVES)


@dataclass(frozen=True)
class Played:
    """How many times fewer epochs were trained, and by how much the winner is worse than the best of all."""

    saved: float
    lost: float


def offered(name: str, epochs: int = EPOCHS) -> BasePruner:
    """The pruner of that name, for trainings of so many epochs."""
    settings = OmegaConf.load(FOLDER / "pruner" / f"{name}.yaml")
    length = {"max_resource": epochs} if "max_resource" in settings else {}
    with warnings.catch_warnings(action="ignore"):
        pruner: BasePruner = targets.call(settings, **length)
    return pruner


def play(pruner: BasePruner, seed: int, slots: int = 2) -> Played:
    """All curves, in an order drawn by the seed."""
    order = list(range(len(CURVES)))
    random.Random(seed).shuffle(order)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    running: list[tuple[list[float], optuna.Trial]] = []
    epochs = 0
    while order or running:
        while order and len(running) < slots:
            running.append((list(CURVES[order.pop(0)]), study.ask()))
        for curve, trial in list(running):
            value = curve.pop(0)
            epochs += 1
            trial.report(value, EPOCHS - len(curve))
            if curve and not trial.should_prune():
                continue
            study.tell(trial, value if not curve else None, TrialState.COMPLETE if not curve else TrialState.PRUNED)
            running.remove((curve, trial))
    return Played(len(CURVES) * EPOCHS / epochs, BEST - study.best_value)


def main() -> None:
    """The table of docs/sweeps.md."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(
        "| pruner | fewer epochs | the best itself | not to be told from it | worst loss of AP |\n|---|---|---|---|---|"
    )
    for name in sorted(path.stem for path in (FOLDER / "pruner").glob("*.yaml")):
        played = [play(offered(name), seed) for seed in range(SEEDS)]
        saved = statistics.median(one.saved for one in played)
        same, near = (sum(one.lost <= most for one in played) for most in (0, SPREAD / 2))
        worst = max(one.lost for one in played)
        print(f"| `{name}` | {saved:.1f} times | {same} of {SEEDS} | {near} of {SEEDS} | {worst:.3f} |", flush=True)


if __name__ == "__main__":
    main()
