"""All that is measured on a GPU, in one call: `python -m tests.bench.gpu --data FOLDER > result.md`.

The losses' table with its check for synchronizations, the throughput of RetinaNet R50 against torchvision's
loop in the same process, and evidence at R50 scale: five losses on a COCO folder, tuned alike, over seeds.
Needs what `pip install ghm[detect] scipy` brings.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ghm.losses import GHMC, GHMR
from ghm.models import retinanet
from ghm.models.backbones import resnet_fpn
from tests.bench import evidence, losses
from tests.bench.losses import finish, medians

Step = Callable[[], None]


def batch(images: int, size: int, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.1, 0.1, 0.3, 0.4], [0.5, 0.2, 0.9, 0.8], [0.3, 0.6, 0.45, 0.7]]) * size
    target = {"boxes": corners.to(device), "labels": torch.tensor([0, 1, 2], device=device)}
    return [torch.rand(3, size, size, generator=generator).to(device) for _ in range(images)], [target] * images


def stepper(model: nn.Module, given: argparse.Namespace, reads: bool) -> tuple[Step, dict[str, Step]]:
    """A training step in bf16, and its three parts; `reads` the loss before the backward pass, as torchvision's."""
    images, targets = batch(given.images, given.size, given.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
    kept: dict[str, Tensor] = {}

    def forward() -> None:
        with torch.autocast(given.device, torch.bfloat16):
            parts = model(images, targets)
        kept["loss"] = torch.stack([value for name, value in parts.items() if name != "ce"]).sum()

    def backward() -> None:
        if reads:
            kept["loss"].item()
        kept["loss"].backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    parts = {"forward": forward, "backward": backward, "optimizer": update}

    def step() -> None:
        for part in parts.values():
            part()

    return step, parts


def split(parts: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of the parts of a step, each waited for."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, part in parts.items():
            finish()
            start = time.perf_counter()
            part()
            finish()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(given: argparse.Namespace) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    side = 8192 if given.device == "cuda" else 256
    a = torch.randn(side, side, device=given.device, dtype=torch.bfloat16)
    return 2 * side**3 / medians({"product": lambda: a @ a}, given.rounds)["product"]


def throughput(given: argparse.Namespace) -> None:
    from torchvision.models import resnet50  # which imports only after ghm.models
    from torchvision.models.detection import RetinaNet

    torch.manual_seed(0)
    size = {"min_size": given.size, "max_size": 2 * given.size}
    with tempfile.NamedTemporaryFile() as weights:  # of no use, but with them the norm is frozen, as in the paper
        torch.save(resnet50().state_dict(), weights.name)
        own = retinanet("resnet50", 80, GHMC(), GHMR(), None, weights.name, **size).to(given.device).train()
        stock = RetinaNet(resnet_fpn("resnet50", weights.name, "P3-P7"), 80, **size)
    own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step, parts = stepper(own, given, reads=False)
    other, _ = stepper(stock.to(given.device).train(), given, reads=True)
    took = medians({"ours": step, "torchvision": other}, given.rounds)
    with FlopCounterMode(display=False) as counter:
        step()
    rate = matrix_rate(given)
    print(f"\n| R50, {given.images} images of {given.size} pixels, bf16 | images/s | ms a step |\n|---|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {given.images / seconds:.1f} | {1e3 * seconds:.1f} |")
    share = counter.get_total_flops() / took["ours"] / rate
    print(f"\nOurs against torchvision's: {took['torchvision'] / took['ours']:.2f}. {share:.1%} of the measured")
    print(f"matrix rate of {rate / 1e12:.1f} TFLOP/s. A step's parts, each waited for:")
    print(", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in split(parts, given.rounds).items()) + ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help="a COCO folder to train on; none: no evidence")
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--losses", nargs="+", choices=evidence.LOSSES, help="of the evidence; all")
    parser.add_argument("--data-size", type=int, default=240, help="short side of the folder's images, in pixels")
    parser.add_argument("--jobs", type=int, default=6, help="trainings at a time")
    parser.add_argument("--processes", type=int, default=2, help="that load images for each training")
    parser.add_argument("--elements", type=int, nargs="+", default=[4_000_000, 32_000_000])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    for elements in given.elements:
        compiled = "--compile" if given.compile else "--no-compile"
        losses.main(["--device", given.device, "--elements", str(elements), "--rounds", str(given.rounds), compiled])
        print()
    throughput(given)
    if given.data is not None:
        evidence.main(given)


if __name__ == "__main__":
    main()
