"""A namespace of processes, mounts and network ports with bounded memory, in which faults can hurt nothing else.

What is injected below (kill -9, SIGSTOP, a full disk, an eaten memory) reaches the processes of the namespace alone,
and whatever these leave running is gone when it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

GIB = 2**30
INSIDE = "GHM_CHAOS_NAMESPACE"  # in the environment of all that runs there
CGROUPS = [(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")]


def why_not() -> str | None:
    """Why this machine offers no such namespace; None where it does."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    tried = subprocess.run([*_UNSHARE, *_LOOPBACK, "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"unshare: {tried.stderr.strip()}"


_UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
_LOOPBACK = ["bash", "-c", 'ip link set lo up && exec "$0" "$@"']


def run(command: list[str], seconds: float, gib: float = 12) -> subprocess.CompletedProcess[str]:
    """Run a command inside; it is killed after so many seconds."""
    group = _bounded(gib)
    # Process 1 is a shell that waits: a command that were process 1 itself would not feel signals as elsewhere.
    first = '[ -z "$0" ] || echo $$ > "$0/cgroup.procs"; "$@"; exit $?'
    shell = ["bash", "-c", first, str(group or "")]
    try:
        return subprocess.run(
            [*_UNSHARE, *_LOOPBACK, *shell, *command],
            env=os.environ | {INSIDE: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    finally:
        if group is not None:
            group.rmdir()


def _bounded(gib: float) -> Path | None:
    """A new group of processes with so much memory; None where none can be made, and then nothing bounds it."""
    for root, limit in CGROUPS:
        if not (root / "cgroup.procs").exists():  # else a folder there would bound nothing
            continue
        try:
            # Not by the number of a process: in namespaces of their own two have the same.
            group = Path(tempfile.mkdtemp(prefix="ghm-chaos-", dir=root))
        except OSError:
            continue
        try:
            (group / limit).write_text(str(int(gib * GIB)))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def others() -> dict[int, str]:
    """The command lines of the other processes of this namespace."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if pid not in (1, os.getpid(), os.getppid()) and line:
            found[pid] = line
    return found


def end_all() -> None:
    """Kill every other process: Ray leaves some, and whole clusters after a kill -9."""
    if INSIDE not in os.environ:
        sys.exit("only in a namespace of its own")
    for pid in others():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
