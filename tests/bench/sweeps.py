"""What a sweep adds to its trials, beside what other systems add: the third part of `make bench`.

Every system runs trials that do nothing, one at a time, of one setting drawn at random, and keeps its study in SQLite.
Then two slots run trials of 0.2 s and 2 s in turn, beside the time that these need with nothing in between.
"""

import argparse
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tests.bench import rivals

ROOT = Path(__file__).resolve().parents[2]
OFFICIAL = ("hydra-optuna-sweeper==1.4.0rc3", "hydra-core==1.4.0rc3", "optuna==5.0.0")
PARTS = ("compose", "ask", "launch", "log", "tell")
SHORT, LONG = 0.2, 2.0  # seconds of the trials that two slots share
CONFIG = """
defaults:
  - override hydra/sweeper: ghm
  - override hydra/sweeper/sampler: random
  - _self_
x: 0.5
folder: .
seconds: 0.0
seed: 0
cwd: .
runs: ${folder}/runs
dir: null
objective: value
tracking: {uri: null, experiment: bench}
scaling: {num_workers: 0, slot: {cpus: 1, gpus: 0}}
trial: {name: null, trial: null, attempt: null, label: null, params: null, record: null, parent: null, hub: null}
hydra:
  searchpath: [file://CONF]
  output_subdir: null
  sweep: {dir: "${runs}/sweep"}
  sweeper: {check: tests.bench.sweeps.checked, report: tests.bench.sweeps.reported}
"""


def task(cfg: DictConfig) -> float:
    rivals.started(cfg.folder)
    seconds = cfg.seconds
    if seconds < 0:  # in turns
        seconds = SHORT if cfg.trial.trial % 2 == 0 else LONG
    time.sleep(seconds)
    with open(Path(cfg.folder) / "ends", "a") as file:
        file.write(f"{time.time()}\n")
    return (cfg.x - 1) ** 2


def checked(cfg: DictConfig) -> None:
    """Nothing can be wrong with it."""


def reported(cfg: DictConfig, gaps: Exception | None) -> None:
    """Nothing is shown of it."""


def ours(folder: Path, trials: int, jobs: int, seconds: float) -> None:
    """A sweep of `task`, with the times of its parts taken."""
    import hydra

    from ghm.paths import CONF
    from sweeps import launch
    from sweeps.draw import Search
    from sweeps.ledger import Ledger
    from sweeps.record import Record
    from sweeps.slots import Slots
    from sweeps.view import View
    from tests.bench.sweeps import task as importable  # by the processes of Ray

    rivals.timed(Search, "draw", "ask")
    for method, part in (("queue", "ask"), ("complete", "ask"), ("start", "launch"), ("end", "tell")):
        rivals.timed(Ledger, method, part)
    rivals.timed(Slots, "start", "launch")
    for owner, method in ((Record, "begin"), (Record, "finish"), (View, "started"), (View, "ended")):
        rivals.timed(owner, method, "log")
    run = launch.run_sweep

    def timed_compose(sweep: Any, search: Any, work: Any, compose: Any, tracker: Any) -> Any:
        holder = type("Holder", (), {"compose": staticmethod(compose)})
        rivals.timed(holder, "compose", "compose")
        return run(sweep, search, work, lambda *given: holder.compose(*given), tracker)

    launch.run_sweep = timed_compose
    (folder / "config.yaml").write_text(CONFIG.replace("CONF", str(CONF)))
    sys.argv = ["ours", "-m", "x=interval(0.0,2.0)", f"folder={folder}", f"seconds={seconds}"]
    sys.argv += [f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.study_name=s"]
    hydra.main(config_path=str(folder), config_name="config", version_base="1.3")(importable)()


def ideal(trials: int, jobs: int) -> float:
    """Seconds that the trials need when a free slot gets the next at once."""
    slots = [0.0] * jobs
    for number in range(trials):
        heapq.heapreplace(slots, slots[0] + (SHORT if number % 2 == 0 else LONG))
    return max(slots)


def measure(command: list[str | Path], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def official_python(folder: Path) -> Path:
    """Of an environment with Hydra's own sweeper, which needs another Hydra than ours."""
    environment = folder / "official"
    if not (environment / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--pre", "setuptools<81"]
        subprocess.run([*pip, *OFFICIAL], check=True)
    return environment / "bin" / "python"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench.sweeps")
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=3, help="of all systems in turn; medians are shown")
    arguments.add_argument("--keep", type=Path, default=ROOT / "runs" / "bench", help="where environments are kept")
    arguments.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.ours:
        folder, trials, jobs, seconds = given.ours
        ours(Path(folder), int(trials), int(jobs), float(seconds))
        print(rivals.result(folder, int(trials)))
        return
    given.keep.mkdir(parents=True, exist_ok=True)
    official = official_python(given.keep)
    us, others = [sys.executable, "-m", "tests.bench.sweeps", "--ours"], str(Path(rivals.__file__))
    found: dict[str, list[dict[str, Any]]] = {}
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(given.rounds):
            for name, command in (
                ("ghm", [*us, "FOLDER", str(given.trials), "1", "0"]),
                ("hydra-optuna-sweeper 1.4.0rc3", [official, others, "official", "FOLDER", str(given.trials)]),
                ("Ray Tune", [sys.executable, others, "tune", "FOLDER", str(given.trials // 3)]),
                ("Optuna alone", [sys.executable, others, "plain", "FOLDER", str(given.trials)]),
            ):
                folder = Path(temporary, f"{turn}-{len(found)}-{name.split()[0]}")
                place = [str(folder) if word == "FOLDER" else word for word in command]
                found.setdefault(name, []).append(measure(place, folder))
            folder = Path(temporary, f"{turn}-slots")
            measure([*us, str(folder), "20", "2", "-1"], folder)
            starts, ends = ([float(x) for x in (folder / name).read_text().split()] for name in ("starts", "ends"))
            ratios.append((max(ends) - min(starts)) / ideal(20, 2))
    show(found, ratios)


def show(found: dict[str, list[dict[str, Any]]], ratios: list[float]) -> None:
    table = Table("a trial that does nothing, ms", "in all", *PARTS)
    for name, turns in found.items():
        [middle] = sorted(turns, key=lambda turn: turn["trial"])[len(turns) // 2 :][:1]
        parts = [f"{middle['parts'][part]:.1f}" if part in middle["parts"] else "" for part in PARTS]
        table.add_row(name, f"{middle['trial']:.0f}", *parts)
    console = Console()
    console.print(table)
    console.print(f"Two slots, trials of {SHORT:g} and {LONG:g} s in turn: {statistics.median(ratios):.3f} of ideal")


if __name__ == "__main__":
    main()
