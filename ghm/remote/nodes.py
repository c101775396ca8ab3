"""The nodes of the Ray cluster that is connected, and whether they all see the same folder."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ghm.provenance import write_atomically

MARK = ".mark"
ANSWER = 30.0  # seconds; a node's first process of a job also unpacks its code


def count() -> int:
    """Of the nodes that are alive."""
    return sum(node["Alive"] for node in ray.nodes())


def is_file(uri: str | None) -> bool:
    """Whether a database is a file on one machine, as it is where none is named."""
    return uri is None or uri.startswith("sqlite:")


def refuse_file(key: str, uri: str | None, remedy: str) -> None:
    """ValueError for a database that is a file where there are several nodes: it lies on one of them."""
    if count() > 1 and is_file(uri):
        raise ValueError(
            f"{key}={uri or 'null'}: this Ray cluster has {count()} nodes, and a SQLite file lies on one of them; "
            f"{remedy}"
        )


def refuse_local_tracking(uri: str | None) -> None:
    """`refuse_file` for MLflow's."""
    refuse_file("tracking.uri", uri, "set MLFLOW_TRACKING_URI to the address of a tracking server")


def mark(folder: Path) -> str:
    """The folder's own mark, made if it has none: who reads the same one sees the same folder."""
    path = folder / MARK
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex)
    return path.read_text()


def sees(folder: Path, marked: str) -> bool:
    """Whether the folder of that path here is the one with that mark."""
    try:
        return (folder / MARK).read_text() == marked
    except OSError:
        return False


class Sight:
    """Which nodes see `folder`, those included that join later; nothing waits for one that does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, mark(folder)
        self._here = ray.get_runtime_context().get_node_id()
        self._asked: dict[str, Any] = {}  # reference to its answer, by id of the node
        self._known: dict[str, bool] = {}
        if not self.shared() and self._asked:
            ray.wait([*self._asked.values()], num_returns=len(self._asked), timeout=ANSWER)

    def shared(self) -> bool:
        """Whether every node that is alive now sees the folder; False while one has not answered."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {self._here}
        for node in alive - self._asked.keys():
            self._asked[node] = ask(node, sees, self.folder, self.mark)
        for node in alive - self._known.keys():
            done, _ = ray.wait([self._asked[node]], timeout=0)
            if done:
                self._known[node] = bool(answer(done[0]))
        return all(self._known.get(node, False) for node in alive)


def ask(node: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The reference to what a function returns on the node of this id, whatever else runs there."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(*arguments)


def answer(reference: Any) -> Any:
    """What it returned; None from a node that is gone."""
    try:
        return ray.get(reference)
    except RayError:
        return None
