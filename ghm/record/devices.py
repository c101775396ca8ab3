"""What a run computes on, by name: another device gives other last digits."""

import platform
from functools import cache
from pathlib import Path

import ray
import torch

from ghm.remote import nodes

CPU = "CPU: "


def here(wanted: str) -> str:
    """Of a run in this process with `device=wanted`."""
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{CPU}{_processor()}"


def possible(wanted: str, gpus: float) -> list[str]:
    """Of a run that the cluster which is connected may start on any of its nodes; without one, in this process.

    A run that takes `gpus` computes on a GPU. What a node does not tell in time is not known, and not here.
    """
    if not ray.is_initialized() or nodes.count() == 1:
        return [here(wanted)]
    found = _of_nodes(wanted, tuple(sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])))
    return sorted({name for name in found if not gpus or not name.startswith(CPU)})


@cache
def _of_nodes(wanted: str, alive: tuple[str, ...]) -> list[str]:
    asked = [nodes.ask(node, here, wanted) for node in alive]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=nodes.ANSWER)
    return [name for name in map(nodes.answer, answered) if name]


@cache
def _processor() -> str:
    """The processor's model, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        return platform.processor() or platform.machine()
