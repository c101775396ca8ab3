"""`ghm doctor`: what a command would find, what is wrong with it, and what to do."""

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from ghm.doctor import Asked, Finding, Level, examine
from ghm.settings.paths import absolute
from ghm.verbs import composed

MARKS = {Level.FINE: "[green]ok[/]     ", Level.DOUBTFUL: "[yellow]doubtful[/]", Level.BROKEN: "[red]broken[/]  "}


def main() -> None:
    """Exit code 0 where all is fine, 1 where something is doubtful, 2 where something is broken."""
    config = composed.of_sweep(sys.argv[1:])
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])  # of whose node not all is known
    plain = absolute(own)
    root = OmegaConf.select(plain, "data.root") or os.environ.get("GHM_DATA")
    asked = Asked(Path(plain.runs), root, plain.tracking.uri, config.hydra.sweeper.storage)
    console, worst = Console(), Level.FINE
    for finding in examine(asked):
        _show(console, finding)
        worst = max(worst, finding.level)
    raise SystemExit(int(worst))


def _show(console: Console, finding: Finding) -> None:
    console.print(f"{MARKS[finding.level]} {finding.what}: ", end="")
    console.print(finding.said, markup=False, highlight=False, soft_wrap=True)
    if finding.remedy:
        console.print(f"         {finding.remedy}", markup=False, highlight=False, soft_wrap=True)
