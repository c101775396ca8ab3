"""A Ray cluster of several nodes on one machine, each with processes and, if asked, a disk of its own."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ray.util.state import list_nodes

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ADDRESS, DASHBOARD = "127.0.0.1:6379", "http://127.0.0.1:8265"
# A node that is gone is noticed after some seconds, and a head that is gone ends its nodes.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}


def quiet() -> dict[str, str]:
    """The environment of a Ray that asks nobody for a token, and of what runs on it."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}


@dataclass
class Rig:
    """Inside `tests.chaos.namespace`: a head and nodes, whose Ray keeps its sockets in `place` (a short path).

    `apart`: folders of which each node but the head has one of its own, all under the same path.
    """

    place: Path
    environment: dict[str, str]
    apart: list[Path] = field(default_factory=list)
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    joined: int = 1
    refused: str = ""  # what the head last said instead of its nodes

    def head(self, cpus: int, *options: str) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        head = ["--head", "--port=6379", f"--temp-dir={self.place}", *options]
        self._start("head", "127.0.0.1", cpus, head, [])
        self._wait("127.0.0.1")

    def join(self, name: str, cpus: int, *options: str) -> None:
        """Another node.

        It unpacks the code it is sent in a folder of its own: a node unpacks it anew, whoever already runs from there.
        """
        sent = (self.place / "session_latest").resolve() / "runtime_resources"
        own = [(folder, self.place / name / folder.name) for folder in [*self.apart, sent]]
        self.joined += 1
        address = f"127.0.0.{self.joined}"
        self._start(name, address, cpus, [f"--address={ADDRESS}", *options], own)
        self._wait(address)

    def kill(self, name: str) -> None:
        """All processes of a node at once, as when its machine loses power."""
        process = self.nodes.pop(name)
        process.kill()
        process.wait()

    def disk(self, name: str, folder: Path) -> Path:
        """Where a node's own folder lies."""
        return self.place / name / folder.name

    def alive(self) -> list[str]:
        """The addresses of the nodes that the head takes for alive."""
        try:
            state = [("state", "=", "ALIVE")]  # of the dead there is less to know, which else is an error
            found = list_nodes(address=DASHBOARD, filters=state, timeout=5, raise_on_missing_output=False)
        except Exception as error:  # it is only starting
            self.refused = str(error)
            return []
        return [node.node_ip for node in found]

    def _start(self, name: str, address: str, cpus: int, words: list[str], own: list[tuple[Path, Path]]) -> None:
        mounts = []
        for folder, disk in own:
            disk.mkdir(parents=True, exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            mounts.append(f'mount --bind "{disk}" "{folder}"')
        command = [BIN / "ray", "start", "--block", f"--num-cpus={cpus}", f"--node-ip-address={address}", *words]
        inside = ["bash", "-c", " && ".join([*mounts, 'exec "$0" "$@"'])]
        with (self.place / f"{name}.log").open("ab") as log:
            self.nodes[name] = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", *inside, *command],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def _wait(self, address: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while address not in self.alive():
            assert time.monotonic() < deadline, f"{address} did not come up ({self.refused}): {self._logs()}"
            time.sleep(0.3)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.place.glob("*.log"))
