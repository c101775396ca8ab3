"""`ghm plan`: what a sweep would do, without doing it; on the command line of `ghm train -m`."""

import sys

from ghm.verbs import train


def main() -> None:
    if not {"-m", "--multirun"} & {*sys.argv}:
        sys.argv.insert(1, "-m")
    sys.argv.append("hydra.sweeper.dry_run=true")
    train.main()
