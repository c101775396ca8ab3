"""What a sweep shows while it runs: a live panel in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ghm.interval import half_width
from sweeps.budget import Meter
from sweeps.goal import Goal, Values
from sweeps.ledger import Ledger
from sweeps.policy import Change
from sweeps.replicates import Replicates
from sweeps.space import label
from sweeps.states import State
from sweeps.trials import Trial

LAST = 5  # trials that ended, shown below those that run
QUIET = 60.0  # seconds without a line in a log, after which the epochs that running trials are in are one


@dataclass
class Running:
    label: str
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    begun: float = field(default_factory=lambda: time.monotonic())

    @property
    def share(self) -> float:
        return self.epoch / self.epochs if self.epochs else 0.0


@dataclass
class View:
    """Counts, running trials and the best so far of one sweep; enter it as a context."""

    name: str
    goal: Goal
    n_trials: int
    meter: Meter | None = None
    replicates: Replicates = field(default_factory=Replicates)
    done: int = 0
    pruned: int = 0
    failed: int = 0
    best: tuple[str, str] | None = None  # its values, its settings
    front: int = 0  # how many trials no other beats
    takes: Mapping[str, float] = field(default_factory=dict)  # of the cluster, by each run: CPU and GPU
    ended_last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST))  # and why
    running: dict[int, Running] = field(default_factory=dict)  # by the number of the run
    left: int = 0  # runs that have not ended
    console: Console = field(default_factory=Console)
    _begun: float = field(default_factory=time.monotonic)
    _work: float = 0.0  # runs' worth of work finished since the sweep began or was continued
    _busy: float = 0.0  # seconds that it took, one run after another
    _live: Live | None = None
    _said: float = field(default_factory=time.monotonic)  # when the last line was printed

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def show(self, ledger: Ledger) -> None:
        """What the ledger holds now."""
        self.done, self.pruned, self.failed = map(ledger.count, (State.DONE, State.PRUNED, State.FAILED))
        self.front = len(ledger.front)
        each = self.replicates.count
        open_ones = [trial for trial in ledger.trials if not trial.over]
        self.left = (self.n_trials - len(ledger.trials)) * each + sum(each - len(one.ended) for one in open_ones)
        if (best := ledger.best) is not None:
            self.best = (self._mean(best), f"trial {best.number}, {label(best.params)}")

    def started(self, run: int, label: str, attempt: int = 1) -> None:
        self.running[run] = Running(label)
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self._line(f"{self.replicates.named(run)} started{again}: {label}")

    def reported(self, run: int, epoch: int, epochs: int, value: float) -> None:
        if run in self.running:
            one = self.running[run]
            one.epoch, one.epochs, one.value = epoch, epochs, value
        if time.monotonic() - self._said > QUIET:
            runs = sorted(self.running.items())
            epochs_of = ", ".join(
                f"{self.replicates.named(number)} epoch {one.epoch}/{one.epochs or '?'}" for number, one in runs
            )
            self._line("  " + "; ".join(filter(None, [epochs_of, self.best_so_far(), self.time_left()])))

    def gone(self, run: int) -> None:
        """A run has ended."""
        if run in self.running:
            one = self.running.pop(run)
            self._work += one.share or 1.0
            self._busy += time.monotonic() - one.begun

    def kept(self, ledger: Ledger, run: int, values: Values) -> None:
        """A run has ended, one of several of its trial."""
        self.show(ledger)
        self._line(f"{self.replicates.named(run)} done: {self._shown(values)}")

    def ended(self, ledger: Ledger, trial: Trial) -> None:
        self.show(ledger)
        shown = f" {self._shown(trial.values)}" if trial.values else ""
        shown += f" over {len(trial.ended)} seeds" if trial.ended else ""
        shown += "" if trial.allowed else " (breaks a bound)"
        why = f", {trial.reason}" if trial.reason else ""
        ended = f"trial {trial.number} {trial.state}:{shown} {label(trial.params)}{why}"
        self.ended_last.append(ended)
        self._line(ended)
        self._line("  " + "; ".join(filter(None, [self.counts(), self.best_so_far(), self.time_left()])))

    def queued(self, run: int, change: Change) -> None:
        """A run did not end, and goes on later."""
        gone = self.running.pop(run)
        again = f"attempt {change.attempt} follows in {change.wait:g} s" if change.error else "goes on later"
        self.note(f"{self.replicates.named(run)} {'lost: ' + change.error if change.error else gone.label}; {again}")

    def note(self, text: str) -> None:
        """A line above the panel."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def counts(self) -> str:
        ended = f"{self.done} of {self.n_trials} done"
        counts = f"{ended}, {len(self.running)} running, {self.pruned} pruned, {self.failed} failed"
        return ", ".join(filter(None, [counts, str(self.meter or "")]))

    def best_so_far(self) -> str:
        if self.best is None:
            return ""
        best = f"best {self.best[0]}: {self.best[1]}"
        return f"{self.front} on the Pareto front; {best}" if self.goal.several else best

    def _mean(self, trial: Trial) -> str:
        """Its values; with the 95 % interval of the mean over seeds where there are several."""
        seeds = [run.values[0] for run in trial.ended]
        if len(seeds) < 2 or self.goal.several:
            return self._shown(trial.values)
        return f"{self._shown(trial.values)} ± {half_width(seeds):.4f} over {len(seeds)} seeds"

    def _shown(self, values: Values) -> str:
        named = zip(self.goal.objectives, values, strict=False)  # of a pruned trial the first alone
        return ", ".join(f"{name} {value:.4f}" if abs(value) < 1000 else f"{name} {value:.6g}" for name, value in named)

    def time_left(self) -> str:
        """And what it takes of the cluster."""
        left = self.seconds_left()
        if left is None:
            return ""
        cost = self._cost_left()
        return f"about {_clock(left)} left" + (f", {cost}" if cost else "")

    def _cost_left(self) -> str:
        """In hours of GPUs, or else of CPUs, as long as the runs so far took of them."""
        now, (done, left) = time.monotonic(), self._progress()
        kind = next((kind for kind in ("GPU", "CPU") if self.takes.get(kind)), None)
        if kind is None or done <= 0:
            return ""
        busy = self._busy + sum(now - one.begun for one in self.running.values() if one.share)
        return f"{left * busy / done * self.takes[kind] / 3600:.2g} {kind}-hours"

    def seconds_left(self) -> float | None:
        """From the pace so far, which counts the finished part of running trials; None before any."""
        done, left = self._progress()
        return left * (time.monotonic() - self._begun) / done if done > 0 else None

    def _progress(self) -> tuple[float, float]:
        """Runs' worth of work that is done, and that is left."""
        now = sum(one.share for one in self.running.values())
        return self._work + now, max(self.left - now, 0.0)

    def render(self) -> Group:
        elapsed = f"{_clock(time.monotonic() - self._begun)} elapsed"
        head = Text.assemble(
            (self.name, "bold"), "  ", ", ".join(filter(None, [self.counts(), elapsed, self.time_left()]))
        )
        ended = self.done + self.pruned + self.failed
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row("sweep", ProgressBar(total=self.n_trials, completed=ended, width=24), f"{ended}/{self.n_trials}")
        for number, trial in sorted(self.running.items()):
            bar = ProgressBar(total=1.0, completed=trial.share, width=24)
            value = "" if trial.value is None else f"{trial.value:.4f}"
            table.add_row(
                self.replicates.named(number), bar, f"{trial.epoch}/{trial.epochs or '?'}", value, trial.label
            )
        last = [Text(one, style="dim", overflow="ellipsis", no_wrap=True) for one in self.ended_last]
        return Group(head, Text(self.best_so_far(), style="green"), table, *last)

    def _line(self, text: str) -> None:
        if self._live is None:
            self._said = time.monotonic()
            self.note(text)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
