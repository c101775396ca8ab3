"""A real sweep of small trainings, started as a user does, and what it left, beside that of an undisturbed twin."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from mlflow.entities import Run
from optuna.trial import TrialState

from ghm.tracking import Spool, Tracker
from ghm.training import checkpoint
from sweeps.trials import identity
from tests.chaos import namespace

GHM = Path(sys.executable).parent / "ghm"
OBJECTIVE, TOLD = "val/AR100", "train/loss"  # of trainings this short the loss alone tells two of them apart
TRAINING = [
    *("epochs=4", "data.train_images=4", "data.val_images=4", "data.image_size=64", "batch_size=4"),
    *("figures=false", "device=cpu", f"objective={OBJECTIVE}", "hydra.sweeper.n_trials=100"),
    *("hydra.sweeper.lease=1", "hydra.sweeper.backoff=0.5"),
]
STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass
class Damage:
    """What a sweep's record lacks, holds twice, says wrongly, and how many recorded epochs were trained again."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def none(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


class Sweep:
    """`ghm train -m` in a folder of its own: `overrides` say what is swept, `environment` is added to this one's."""

    command: tuple[str, ...] = ("train", "-m")

    def __init__(self, folder: Path, *overrides: str, jobs: int = 2, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.environment = folder, os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
        name = [f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.study_name=s"]
        given = {override.split("=")[0] for override in overrides}
        self.words = [*overrides, *name, *(word for word in TRAINING if word.split("=")[0] not in given)]
        self.log = folder / "log.txt"

    @property
    def trials(self) -> Path:
        return self.folder / "runs" / "sweeps" / "s"

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [GHM, *self.command, *self.words],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, process: subprocess.Popen[bytes] | None = None, seconds: float = 600) -> int:
        """Let it come to its end; its exit code."""
        return (process or self.start()).wait(timeout=seconds)

    def sync(self) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([GHM, "sync"], cwd=self.folder, env=self.environment, capture_output=True)

    def said(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def epochs(self) -> int:
        """How many epochs are recorded on disk."""
        return sum("metrics" in entry for spool in self._spools() for entry in spool.entries())

    @property
    def storage(self) -> str:
        return self.environment.get("GHM_STORAGE", f"sqlite:///{self.folder}/runs/optuna.db")

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.storage)

    def values(self) -> dict[str, list[float]]:
        """The loss of each epoch, by point."""
        values = {}
        for trial in self.study().trials:
            entries = [entry for entry in Spool(self.trials / f"{trial.number:04d}").entries() if "metrics" in entry]
            values[identity(trial.params)] = [entry["metrics"][TOLD] for entry in entries if TOLD in entry["metrics"]]
        return values

    def damage(self, twin: dict[str, list[float]], tracker: Tracker | None = None) -> Damage:
        """Beside `values` of an undisturbed sweep over the same points, or more."""
        damage, trials = Damage(), self.study().trials
        for point, copies in Counter(identity(trial.params) for trial in trials).items():
            if copies > 1:
                damage.doubled.append(f"{copies} trials of {point}")
        for trial in trials:
            name, point = f"trial {trial.number}", identity(trial.params)
            if trial.state != TrialState.COMPLETE:
                damage.lost.append(f"{name} is {trial.state.name}: {trial.user_attrs.get('error', '')[-200:]}")
                continue
            epochs = list(range(1, len(twin[point]) + 1))
            if sorted(trial.intermediate_values) != epochs:
                damage.lost.append(f"{name} has {len(trial.intermediate_values)} of {len(epochs)} epochs in the study")
            elif trial.value != trial.intermediate_values[epochs[-1]]:
                damage.wrong.append(f"{name} has the value {trial.value}, which is not its last epoch's")
        self._compare_mlflow(tracker or Tracker.open(None, "ghm", str(self.folder / "runs")), twin, damage)
        damage.repeated = sum(map(_repeated, self._spools()))
        return damage

    def _compare_mlflow(self, tracker: Tracker, twin: dict[str, list[float]], damage: Damage) -> None:
        [parent] = tracker.sweeps("s")
        runs: dict[int, list[Run]] = {}
        for run in tracker.children(parent.info.run_id):
            runs.setdefault(int(run.data.tags["sweep.trial"]), []).append(run)
        for trial in self.study().trials:
            name, found = f"trial {trial.number}", runs.pop(trial.number, [])
            if len(found) != 1:
                (damage.doubled if found else damage.lost).append(f"{name} has {len(found)} runs in MLflow")
                continue
            state = found[0].data.tags["sweep.state"]
            if state != STATES.get(trial.state, "queued"):
                damage.wrong.append(f"{name} is {trial.state.name} in the study and {state} in MLflow")
            history = tracker.client.get_metric_history(found[0].info.run_id, OBJECTIVE)
            steps = [entry.step for entry in sorted(history, key=lambda entry: (entry.timestamp, entry.step))]
            if len(steps) != len(set(steps)):
                damage.doubled.append(f"{name} has steps {steps} in MLflow")
            elif steps != sorted(steps):
                damage.wrong.append(f"{name} has steps {steps} in MLflow")
            if {entry.step: entry.value for entry in history} != trial.intermediate_values:
                damage.wrong.append(f"{name} has other values in MLflow than in the study")
            losses = [value for _, value in tracker.history(found[0].info.run_id, TOLD)]
            if losses != twin[identity(trial.params)]:
                damage.wrong.append(f"{name} has losses {losses}, its twin {twin[identity(trial.params)]}")
        damage.wrong += [f"MLflow knows a trial {number} that the study does not" for number in runs]

    def _spools(self) -> list[Spool]:
        return [Spool(path.parent) for path in self.trials.glob("0*/metrics.jsonl")]


def _repeated(spool: Spool) -> int:
    """Epochs that were recorded and then trained once more: the last checkpoint has another time for them."""
    recorded = {entry["step"]: entry["at"] for entry in spool.entries() if "metrics" in entry and entry["step"]}
    last = spool.folder / "last.pt"
    history = checkpoint.read(last)["history"] if last.exists() else []
    return sum(recorded.get(epoch["epoch"]) not in (None, epoch["at"]) for epoch in history)


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 180) -> bool:
    """Whether it became true while the process ran."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the machine's memory killer does it: without a word."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def slots() -> list[int]:
    """Process ids of the slots in which a trial runs."""
    return [pid for pid, line in namespace.others().items() if line.startswith("ray::Slot.run")]


def report(name: str, faults: int, damage: Damage, seconds: float) -> str:
    """One line of JSON, for whoever started the namespace."""
    about = {"name": name, "faults": faults, "repeated": damage.repeated, "seconds": round(seconds)}
    return json.dumps(about | {"lost": damage.lost, "doubled": damage.doubled, "wrong": damage.wrong})
