"""`make chaos`: faults of every kind, each in a process namespace of its own; what was lost, doubled or wrong.

python -m tests.chaos [CASE...]
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import namespace
from tests.chaos.cases import CASES, Given
from tests.chaos.sweep import Sweep, report


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos")
    arguments.add_argument("cases", nargs="*", choices=[*CASES, []], help="all of them without any")
    arguments.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments.add_argument("--points", type=int, default=30, help="of the undisturbed twin")
    arguments.add_argument("--inside", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.inside:
        _inside(Path(given.inside), given.cases, given.points, given.seed)
        return
    if (reason := namespace.why_not()) is not None:
        raise SystemExit(f"chaos: needs a process namespace, and this machine offers none ({reason})")
    raise SystemExit(_all(given.cases or list(CASES), given.points, given.seed))


def _all(names: list[str], points: int, seed: int) -> int:
    """Run the cases one after another; 0 if they left no damage."""
    console, results = Console(width=max(Console().width, 110)), []
    with tempfile.TemporaryDirectory(prefix="ghm-chaos-") as folder:
        for name in ["twin", *names]:
            command = [sys.executable, "-m", "tests.chaos", "--inside", folder]
            command += ["--seed", str(seed), "--points", str(points)]
            ended = namespace.run([*command, *([] if name == "twin" else [name])], seconds=1500)
            if ended.returncode:
                console.print(ended.stdout[-6000:], markup=False, highlight=False)
                logs = Path(folder, name, "log.txt")
                console.print(logs.read_text()[-6000:] if logs.exists() else "", markup=False, highlight=False)
                raise SystemExit(f"chaos: {name} ended with {ended.returncode}")
            if name == "twin":
                continue
            result = json.loads(ended.stdout.strip().splitlines()[-1])
            results.append(result)
            damages = [one for kind in ("lost", "doubled", "wrong") for one in result[kind]]
            console.print(f"{name}: {result['faults']} faults, {result['seconds']} s", highlight=False)
            for one in damages:
                console.print(f"  {one}", markup=False, highlight=False)
            if damages and (log := Path(folder, name, "log.txt")).exists():
                console.print(log.read_text()[-2000:], markup=False, highlight=False)
    table = Table("case", "faults", "trials lost", "doubled", "wrong", "epochs repeated", "seconds")
    for result in results:
        counts = [str(len(result[kind])) for kind in ("lost", "doubled", "wrong")]
        table.add_row(result["name"], str(result["faults"]), *counts, str(result["repeated"]), str(result["seconds"]))
    console.print(table)
    sound = all(
        not (result["lost"] or result["doubled"] or result["wrong"]) and result["repeated"] <= result["faults"]
        for result in results
    )
    return 0 if sound else 1


def _inside(folder: Path, cases: list[str], points: int, seed: int) -> None:
    twin = folder / "twin.json"
    if not cases:
        sweep = Sweep(folder / "twin", "loss=focal,cross_entropy", f"seed=range(0,{points // 2})")
        sweep.finish()
        twin.write_text(json.dumps(sweep.values()))
        namespace.end_all()
        return
    [name] = cases
    begun = time.monotonic()
    given = Given(folder / name, json.loads(twin.read_text()), random.Random(f"{seed} {name}"))
    faults, damage = CASES[name](given)
    print(report(name, faults, damage, time.monotonic() - begun), flush=True)
    namespace.end_all()
    os._exit(0)


if __name__ == "__main__":
    main()
