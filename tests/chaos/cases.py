"""What is done to sweeps. Each case gets a folder, random numbers and how much of it is wanted; it says what it did."""

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import namespace
from tests.chaos.proxy import Proxy, tracking_server
from tests.chaos.sweep import Damage, Sweep, kill, slots, wait_until

Twin = dict[str, list[float]]


@dataclass
class Given:
    folder: Path
    twin: Twin  # of every point that a case may sweep
    random: random.Random

    def sweep(self, points: int, *overrides: str, jobs: int = 2, **environment: str) -> Sweep:
        """Over the first so many points of the twin."""
        seeds = ["loss=focal,cross_entropy", f"seed=range(0,{points // 2})"]
        return Sweep(self.folder, *seeds, *overrides, jobs=jobs, environment=environment)


Done = tuple[int, Damage]  # faults injected, and what they did


def each_once(given: Given) -> Done:
    """What `make test` has time for: the command killed, a training process killed, and Ctrl-C, in one sweep."""
    sweep = given.sweep(6)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 1, process)
    kill(process)
    while slots():  # Ray ends those of a dead command within a second
        time.sleep(0.1)
    process, before = sweep.start(), sweep.epochs()
    wait_until(lambda: sweep.epochs() > before and slots(), process)
    os.kill(slots()[0], signal.SIGKILL)
    wait_until(lambda: sweep.epochs() > before + 6, process)
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=120)
    damage = _finished(sweep, given)
    if code != 130 or not sweep.said("attempt 2 follows"):
        damage.wrong.append(f"Ctrl-C ended it with {code}, or the lost process was not noticed")
    return 3, damage


def controller_killed(given: Given) -> Done:
    """kill -9 of the command at random moments, and the same command again."""
    sweep, kills = given.sweep(30), 0
    for _ in range(20):
        process, before = sweep.start(), sweep.epochs()
        # From the middle of its start to a few epochs later.
        reached = before + given.random.randrange(0, 8)
        wait_until(lambda reached=reached: sweep.epochs() > reached, process)
        time.sleep(given.random.uniform(0, 0.5))
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
    return kills, _finished(sweep, given)


def controller_killed_at_its_start(given: Given) -> Done:
    """kill -9 before or as the first trials start: while it composes, opens the study, starts Ray, draws points."""
    sweep = given.sweep(4)
    kills = 8
    for _ in range(kills):
        process = sweep.start()
        time.sleep(given.random.uniform(2, 14))
        kill(process)
    return kills, _finished(sweep, given)


def worker_killed(given: Given) -> Done:
    """kill -9 of the process that trains, in random epochs of one run of the sweep."""
    sweep = given.sweep(16, "hydra.sweeper.max_attempts=20")
    wanted, kills = 10, 0
    process = sweep.start()
    while kills < wanted:
        reached = sweep.epochs() + given.random.randrange(1, 4)
        if not wait_until(lambda reached=reached: sweep.epochs() > reached and slots(), process):
            break
        os.kill(given.random.choice(slots()), signal.SIGKILL)
        kills += 1
    return kills, _finished(sweep, given, process)


def worker_stopped(given: Given) -> Done:
    """SIGSTOP for good of a process that trains."""
    sweep = given.sweep(4, "hydra.sweeper.patience=4")
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 1 and slots(), process)
    os.kill(slots()[0], signal.SIGSTOP)
    return 1, _finished(sweep, given, process)


def controller_stopped(given: Given) -> Done:
    """SIGSTOP of the command while a second one takes over; then the first goes on, and has to give up."""
    sweep = given.sweep(30, "hydra.sweeper.patience=10")
    first = sweep.start()
    wait_until(lambda: sweep.epochs() > 2, first)
    first.send_signal(signal.SIGSTOP)
    started = sweep.log.read_text().count(" started")
    second = sweep.start()
    wait_until(lambda: sweep.log.read_text().count(" started") > started, second)
    first.send_signal(signal.SIGCONT)
    damage = _finished(sweep, given, second)
    if first.wait(timeout=60) != 1 or not sweep.said("what it still wanted to write was refused"):
        damage.wrong.append(f"the stopped controller went on, or did not say why it ended ({first.returncode})")
    return 1, damage


def two_controllers(given: Given) -> Done:
    """The same command a second time while the first runs."""
    sweep = given.sweep(30)
    first = sweep.start()
    wait_until(lambda: sweep.epochs() > 0, first)
    second = sweep.start()
    code = second.wait(timeout=120)
    damage = _finished(sweep, given, first)
    if code != 2 or not sweep.said("is run by process"):
        damage.wrong.append(f"the second controller ended with {code}")
    return 1, damage


def memory_gone(given: Given) -> Done:
    """Another program eats the memory until Ray kills what trains."""
    used = 1 - _available() / _memory()
    limits = {"RAY_memory_usage_threshold": f"{used + 0.2:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    sweep = given.sweep(16, **limits)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 1 and slots(), process)
    eats = f"x = bytearray({int(0.25 * _memory())}); x[::4096] = b'1' * len(x[::4096]); input()"
    eater = subprocess.Popen(["python3", "-c", eats], stdin=subprocess.PIPE)
    wait_until(lambda: sweep.said("lost: "), process, seconds=30)
    eater.kill()
    eater.wait()
    damage = _finished(sweep, given, process)
    if not sweep.said("lost: "):
        damage.wrong.append("nothing was killed for memory")
    return 1, damage


def database_locked(given: Given) -> Done:
    """Another program holds the study's database for twenty seconds, four times as long as SQLite waits."""
    sweep = given.sweep(16)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 1, process)
    lock = sqlite3.connect(sweep.folder / "runs" / "optuna.db", timeout=60)
    lock.execute("BEGIN EXCLUSIVE")
    time.sleep(20)
    lock.rollback()
    lock.close()
    return 1, _finished(sweep, given, process)


def disk_full(given: Given) -> Done:
    """A small disk that is full for ten seconds, with the checkpoints, the study and MLflow on it."""
    sweep = given.sweep(8, "hydra.sweeper.max_attempts=6", "hydra.sweeper.backoff=1")
    disk = sweep.folder / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", disk], check=True)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 1, process)
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(2**16))
    time.sleep(10)
    (disk / "filler").unlink()
    damage = _finished(sweep, given, process)
    if not (sweep.said("disk is full") or sweep.said("does not take a write")):
        damage.wrong.append("the disk was never found full")
    return 1, damage


def tracker_fails(given: Given) -> Done:
    """A tracking server that answers with errors, resets and delays, and is away for a minute."""
    wanted = 100
    with tracking_server(given.folder / "server") as server, Proxy(server, given.random) as proxy:
        sweep = given.sweep(30, MLFLOW_TRACKING_URI=proxy.address)
        process = sweep.start()
        wait_until(lambda: sweep.epochs() > 0, process)
        proxy.faults = wanted
        wait_until(lambda: sweep.epochs() > 8, process)
        proxy.away_until = time.monotonic() + 60
        sweep.finish(process)
        deadline = time.monotonic() + 60
        while proxy.faults > 0 and time.monotonic() < deadline:  # what is left of them meets `ghm sync`
            sweep.sync()
        injected, proxy.faults, proxy.away_until = wanted - proxy.faults, 0, 0.0
        sweep.sync().check_returncode()
        return injected + 1, sweep.damage(given.twin, proxy.tracker())


def interrupted(given: Given) -> Done:
    """Ctrl-C at random moments; every other time twice. A drain repeats nothing."""
    sweep = given.sweep(16)
    wanted, damage = 10, Damage()
    for time_of_it in range(wanted):
        process, before = sweep.start(), sweep.epochs()
        wait_until(lambda before=before: sweep.epochs() > before, process)
        time.sleep(given.random.uniform(0, 1))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all that it started
        if time_of_it % 2:
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(timeout=120)
        if code not in (130, 0, 1):
            damage.wrong.append(f"Ctrl-C ended it with {code}")
    whole = _finished(sweep, given)
    whole.wrong += damage.wrong
    return wanted, whole


def terminal_lost(given: Given) -> Done:
    """SIGHUP to the whole session, as when an ssh connection breaks: a drain."""
    sweep = given.sweep(16)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 2, process)
    os.killpg(process.pid, signal.SIGHUP)
    code = process.wait(timeout=120)
    damage = _finished(sweep, given)
    if code != 130 or sweep.said("lost: "):
        damage.wrong.append(f"the lost terminal ended it with {code}, or took the trials along")
    return 1, damage


def group_worker_killed(given: Given) -> Done:
    """kill -9 of one of the two workers of a trial, and then of the process that waits for them."""
    sweep = given.sweep(2, "scaling=workers", "hydra.sweeper.max_attempts=5", jobs=1)
    process = sweep.start()
    wait_until(lambda: sweep.epochs() > 0 and _train_workers(), process)
    os.kill(given.random.choice(_train_workers()), signal.SIGKILL)
    before = sweep.epochs()
    wait_until(lambda: sweep.epochs() > before and slots(), process)
    os.kill(slots()[0], signal.SIGKILL)
    code = sweep.finish(process)
    damage = sweep.damage(_any_values(sweep))
    if code == 0 or sweep.said("no trial beats"):
        return 2, damage
    damage.wrong.append(f"it ended with {code}")
    return 2, damage


CASES: dict[str, Callable[[Given], Done]] = {
    case.__name__: case
    for case in (
        *(
            each_once,
            controller_killed,
            controller_killed_at_its_start,
            worker_killed,
            worker_stopped,
            controller_stopped,
        ),
        *(two_controllers, memory_gone, database_locked, disk_full, tracker_fails, interrupted, terminal_lost),
        group_worker_killed,
    )
}


def _finished(sweep: Sweep, given: Given, process: subprocess.Popen[bytes] | None = None) -> Damage:
    code = sweep.finish(process)
    damage = sweep.damage(given.twin)
    if code not in (0, 1) or (code == 1 and not sweep.said("no trial beats")):  # so few images teach nothing
        damage.wrong.append(f"it ended with {code}")
    return damage


def _train_workers() -> list[int]:
    return [pid for pid, line in namespace.others().items() if line.startswith("ray::RayTrainWorker")]


def _any_values(sweep: Sweep) -> Twin:
    """Two workers sum in another order than the twin's one: that they are all there is what counts."""
    return {point: values if len(values) == 4 else [0.0] * 4 for point, values in sweep.values().items()}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
