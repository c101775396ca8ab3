"""What a sweep adds to its trials, beside what other systems add: the third part of `make bench`.

Every system runs trials that do nothing, one at a time, of one setting drawn at random, and keeps its study in SQLite.
Then two slots run trials of 0.2 s and 2 s in turn, beside the time that these need with nothing in between.
"""

import argparse
import dataclasses
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tests.bench import rivals

ROOT = Path(__file__).resolve().parents[2]
RIVAL = "hydra-optuna-sweeper 1.4.0rc3"
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
hydra:
  output_subdir: null
  sweep: {dir: "${folder}/sweep"}
  sweeper: {runs: "${folder}/runs", seed: 0}
"""


def task(cfg: DictConfig) -> float:
    rivals.started(cfg.folder)
    seconds = cfg.seconds
    if seconds < 0:  # in turns
        seconds = SHORT if HydraConfig.get().job.num % 2 == 0 else LONG
    time.sleep(seconds)
    with open(Path(cfg.folder) / "ends", "a") as file:
        file.write(f"{time.time()}\n")
    return (cfg.x - 1) ** 2


def ours(folder: Path, trials: int, jobs: int, seconds: float) -> None:
    """A sweep of `task`, with the times of its parts taken."""
    import hydra

    from sweeps import launch
    from sweeps.draw import Search
    from sweeps.ledger import Ledger
    from sweeps.record import Record
    from sweeps.slots import Slots
    from sweeps.view import View
    from tests.bench.overhead import task as importable  # by the processes of Ray

    rivals.timed(Search, "draw", "ask")
    for method, part in (("queue", "ask"), ("complete", "ask"), ("start", "launch"), ("end", "tell")):
        rivals.timed(Ledger, method, part)
    rivals.timed(Slots, "start", "launch")
    for owner, method in ((Record, "begin"), (Record, "finish"), (View, "started"), (View, "ended")):
        rivals.timed(owner, method, "log")
    run = launch.run_sweep

    def timed_compose(sweep: Any, search: Any, program: Any, tracker: Any) -> Any:
        holder = type("Holder", (), {"compose": staticmethod(program.compose)})
        rivals.timed(holder, "compose", "compose")
        timed = dataclasses.replace(program, compose=lambda *given: holder.compose(*given))
        return run(sweep, search, timed, tracker)

    launch.run_sweep = timed_compose
    (folder / "config.yaml").write_text(CONFIG)
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
    arguments = argparse.ArgumentParser(prog="python -m tests.bench.overhead")
    arguments.add_argument("--trials", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=3, help="of all systems in turn; medians are shown")
    arguments.add_argument("--turns", type=int, default=20, help="trials that two slots share")
    arguments.add_argument("--alone", action="store_true", help="without what has to be installed for it")
    arguments.add_argument("--keep", type=Path, default=ROOT / "runs" / "bench", help="where environments are kept")
    arguments.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.ours:
        folder, trials, jobs, seconds = given.ours
        ours(Path(folder), int(trials), int(jobs), float(seconds))
        print(rivals.result(folder, int(trials)))
        return
    us, others = [sys.executable, "-m", "tests.bench.overhead", "--ours"], str(Path(rivals.__file__))
    systems: dict[str, list[str | Path]] = {
        "ghm": [*us, "FOLDER", str(given.trials), "1", "0"],
        "Optuna alone": [sys.executable, others, "plain", "FOLDER", str(given.trials)],
    }
    if not given.alone:
        given.keep.mkdir(parents=True, exist_ok=True)
        systems[RIVAL] = [official_python(given.keep), others, "official", "FOLDER", str(given.trials)]
        systems["Ray Tune"] = [sys.executable, others, "tune", "FOLDER", str(given.trials // 3)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(given.rounds):
            for number, (name, command) in enumerate(systems.items()):
                folder = Path(temporary, f"{turn}-{number}")
                found[name].append(measure([folder if word == "FOLDER" else word for word in command], folder))
            folder = Path(temporary, f"{turn}-slots")
            measure([*us, str(folder), str(given.turns), "2", "-1"], folder)
            starts, ends = ([float(x) for x in (folder / name).read_text().split()] for name in ("starts", "ends"))
            ratios.append((max(ends) - min(starts)) / ideal(given.turns, 2))
    show(
        {name: sorted(turns, key=lambda turn: turn["trial"])[len(turns) // 2] for name, turns in found.items()}, ratios
    )


def show(found: dict[str, dict[str, Any]], ratios: list[float]) -> None:
    print(
        "| a trial that does nothing, ms | in all | " + " | ".join(PARTS) + " |\n|---" + "|---" * (len(PARTS) + 1) + "|"
    )
    for name, middle in found.items():
        parts = [f"{middle['parts'][part]:.1f}" if part in middle["parts"] else "" for part in PARTS]
        print(f"| {name} | {middle['trial']:.0f} | {' | '.join(parts)} |")
    print("\n| medians of turns | measured | target |\n|---|---|---|")
    if RIVAL in found:
        print(f"| ghm against {RIVAL} | {found['ghm']['trial'] / found[RIVAL]['trial']:.2f} | <= 1.00 |")
    print(
        f"| two slots, {SHORT:g} s and {LONG:g} s in turn, against ideal | {statistics.median(ratios):.3f} | <= 1.050 |"
    )


if __name__ == "__main__":
    main()
