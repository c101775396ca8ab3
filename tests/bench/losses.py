"""What the losses cost, side by side in one process: `make bench`.

Prints a table of ratios with the targets they are held to. Contenders take turns in an order drawn anew
each round, and the ratio is that of their medians, so that a noisy machine disturbs all alike.
"""

import argparse
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ghm.losses import ASL1, GHMC, GHMR, CrossEntropy, FocalLoss
from ghm.losses.histogram import region_of
from ghm.models import retinanet, retinanet_tiny
from tests.bench.yardsticks import RegionLoop, plain, weighing

Loss = Callable[[Tensor, Tensor], Tensor]


class Bench:
    """Logits and targets as a detector's early epochs have them, and the time that losses take on them."""

    def __init__(self, elements: int, rounds: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = (torch.randn(elements, generator=generator) * 2 - 2).to(device).requires_grad_()
        self.y = (torch.rand(elements, generator=generator) < 0.05).float().to(device)
        self.rounds, self.device = rounds, device

    def step(self, loss: Loss) -> None:
        """Forward and backward."""
        self.x.grad = None
        loss(self.x, self.y).backward()

    def medians(self, losses: dict[str, Loss]) -> dict[str, float]:
        """Seconds a step."""
        return medians({name: lambda loss=loss: self.step(loss) for name, loss in losses.items()}, self.rounds)

    def peak(self, loss: Loss) -> float:
        """Largest memory a step needs, in buffers of the logits' size, the gradient included."""
        self.step(loss)
        self.x.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step(loss)
        level = highest = 0
        for event in profiler.profiler.kineto_results.events():  # in the order of time
            if event.name() == "[memory]":
                level += event.nbytes()
                highest = max(highest, level)
        return highest / (self.x.numel() * self.x.element_size())


def medians(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = list(jobs)
    for number in range(rounds + 2):
        random.Random(number).shuffle(order)
        for name in order:
            finish()
            start = time.perf_counter()
            jobs[name]()
            finish()
            if number >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


Pair = tuple[torch.nn.Module, torch.nn.Module]


def training_steps(device: str, rounds: int, losses: dict[str, Pair]) -> dict[str, float]:
    """Seconds of a whole training step of RetinaNet with each pair of losses, for classes and boxes."""
    generator = torch.Generator().manual_seed(0)
    big = device == "cuda"
    size, images = (800, 4) if big else (128, 8)
    batch = [torch.rand(3, size, size, generator=generator).to(device) for _ in range(images)]
    corners = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.3, 0.9, 0.9]]) * size
    target = {"boxes": corners.to(device), "labels": torch.tensor([0, 1], device=device)}

    def trainer(cls_loss: torch.nn.Module, box_loss: torch.nn.Module) -> Callable[[], None]:
        build = partial(retinanet, "resnet50") if big else retinanet_tiny
        torch.manual_seed(0)
        model = build(80, cls_loss, box_loss, 0.01).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step() -> None:
            parts = model(batch, [target] * images)
            optimizer.zero_grad(set_to_none=True)
            (parts["loss_cls"] + parts["loss_box"]).backward()
            optimizer.step()

        return step

    return medians({name: trainer(*pair) for name, pair in losses.items()}, rounds)


@contextmanager
def no_sync(device: str) -> Iterator[None]:
    """Fails where a step waits for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def contenders(bench: Bench, compiled: bool) -> dict[str, Loss]:
    region = region_of(bench.x.detach().sigmoid() - bench.y, 30, None)
    table = torch.rand(32, device=bench.device)

    def ghm(**settings: Any) -> GHMC:
        return GHMC(**settings).to(bench.device)

    losses: dict[str, Loss] = {
        "bce": F.binary_cross_entropy_with_logits,
        "cross_entropy": CrossEntropy(),
        "focal": FocalLoss(),
        "ghm": ghm(),
        "ghm_10": ghm(bins=10),
        "ghm_300": ghm(bins=300),
        "exact": ghm(density="exact"),
        "plain": plain,
        "floor": lambda x, y: weighing(x, y, table, region),
    }
    if compiled:
        losses["compiled"] = torch.compile(ghm(), fullgraph=True)
    return losses


def measure(bench: Bench, compiled: bool) -> tuple[dict[str, float], list[tuple[str, float, str]]]:
    """Seconds of each contender, and the rows of the table: what, ratio, target."""
    losses = contenders(bench, compiled)
    seconds = bench.medians(losses)
    seconds["loop"] = medians({"loop": lambda: bench.step(RegionLoop(30))}, min(bench.rounds, 3))["loop"]
    pairs = {"ce": (CrossEntropy(), ASL1()), "ghm": (GHMC(), GHMR())}
    step = training_steps(bench.device, bench.rounds, pairs)
    memory = bench.peak(losses["ghm"]) - bench.peak(losses["bce"])
    with no_sync(bench.device):
        bench.step(losses["ghm"])
    bce, ghm = seconds["bce"], seconds["ghm"]
    rows = [
        ("GHM-C against BCE", ghm / bce, "<= 1.6"),
        ("GHM-C compiled against BCE", seconds.get("compiled", math.nan) / bce, "<= 1.0"),
        ("loop over regions against GHM-C", seconds["loop"] / ghm, ">= 15"),
        ("M = 300 against M = 10", seconds["ghm_300"] / seconds["ghm_10"], "<= 1.05"),
        ("exact density against unit regions", seconds["exact"] / ghm, "<= 4"),
        ("memory beyond BCE's, in buffers of N elements", memory, "<= 2"),
        ("RetinaNet step, GHM against cross-entropy", step["ghm"] / step["ce"], "<= 1.03"),
    ]
    names = {
        "plain": "plain vectorization (bincount)",
        "floor": "BCE, one bincount, one lookup",
        "cross_entropy": "our cross-entropy",
        "focal": "our focal loss",
        "loop": "loop over regions",
    }
    rows += [(f"to compare: {label} against BCE", seconds[name] / bce, "") for name, label in names.items()]
    return seconds | {"step": step["ce"]}, rows


def bandwidth(bench: Bench, seconds: dict[str, float]) -> str:
    """GHM-C against what moving its bytes once takes: 28 an element (8 to count, 12 to weigh, 8 backward)."""
    copied = medians({"copy": bench.y.clone}, bench.rounds)["copy"]
    rate = 2 * bench.y.numel() * bench.y.element_size() / copied
    floor = 28 * bench.y.numel() / rate
    name = "compiled" if "compiled" in seconds else "ghm"
    return f"Copying runs at {rate / 1e9:.0f} GB/s; GHM-C ({name}) takes {seconds[name] / floor:.2f} times its floor."


def main(words: Sequence[str] | None = None) -> None:
    """Print the table that `words` ask for; those of the command line, unless given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args(words)
    bench = Bench(given.elements, given.rounds, given.device)
    seconds, rows = measure(bench, given.compile)
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, {given.elements:,} elements, M = 30;")
    print(", ".join(f"{key} {1e3 * seconds[key]:.1f} ms" for key in ("bce", "ghm", "exact", "loop", "step")) + ".\n")
    print("| forward and backward, medians | ratio | target |\n|---|---|---|")
    for label, ratio, target in rows:
        print(f"| {label} | {ratio:.2f} | {target} |")
    if given.device == "cuda":
        print(f"\nA GHM-C step waits for nothing on the GPU. {bandwidth(bench, seconds)}")


if __name__ == "__main__":
    main()
