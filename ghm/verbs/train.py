"""`ghm train`: one training run, or with -m a sweep of them."""

from ghm.run import train
from ghm.verbs import composed


def main() -> None:
    composed.run(train, "train")
