"""`ghm train`: one training run, or with -m a sweep of them."""

from ghm.run import train
from ghm.verbs import composed

train.sweep_app = "ghm.swept.Trainings"  # type: ignore[attr-defined]  # how hydra/sweeper=ghm runs it


def main() -> None:
    composed.run(train, "train")
