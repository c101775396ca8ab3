"""What training and scoring cost, side by side in one process: the second half of `make bench`.

Our loop against a plain one in the manner of torchvision's references, on the same network, data and
batch; then what a step waits for, what scoring adds, and how time grows. Medians of epochs in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader

from ghm import scoring
from ghm.data import Data, coco_folder, shapes, train_loader, val_loader
from ghm.data.dataset import DetectionDataset
from ghm.data.loader import collate
from ghm.losses import FocalLoss, SmoothL1
from ghm.models import retinanet_tiny
from ghm.models.backbones import TinyFPN, group_norm
from ghm.training.checkpoint import RunState
from ghm.training.engine import fit
from ghm.training.schedule import one_cycle
from tests.coco import write_folder

CPU = torch.device("cpu")
BATCH = 16


def ours(dataset: DetectionDataset, processes: int, rank: int = 0, world: int = 1) -> Callable[[], dict[str, float]]:
    """An epoch of our loop, as `ghm train` sets it up, each time it is called; its metrics."""
    torch.manual_seed(0)
    loader = train_loader(dataset, BATCH, processes, 0, rank, world)
    model = retinanet_tiny(dataset.num_classes, FocalLoss(), SmoothL1(weight=4.0), 0.01)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    state = RunState(model, optimizer, one_cycle(optimizer, 100, len(loader)))
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model

    def epoch() -> dict[str, float]:
        [result] = fit(state, loader, CPU, 0, state.epoch + 1, clip_grad=35.0, model=wrapped)
        state.epoch = result.epoch
        return result.metrics

    return epoch


def reference(dataset: DetectionDataset, processes: int) -> Callable[[], None]:
    """An epoch in the manner of torchvision's reference scripts: its RetinaNet, a loss for each image."""
    from torchvision.models.detection import RetinaNet  # which imports only after ghm.models
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead

    torch.manual_seed(0)
    loader = DataLoader(
        dataset,
        BATCH,
        shuffle=True,
        num_workers=processes,
        persistent_workers=processes > 0,
        collate_fn=collate,
    )
    sizes = tuple(tuple(round(size * 2 ** (octave / 3)) for octave in range(3)) for size in (12, 24, 48))
    model = RetinaNet(
        TinyFPN(),
        dataset.num_classes,
        min_size=dataset[0][0].shape[1],
        max_size=320,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3),
        head=RetinaNetHead(48, 9, dataset.num_classes, norm_layer=group_norm),
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def epoch() -> None:
        for images, targets in loader:
            losses = sum(model(images, targets).values())
            losses.item()  # as the references do, to stop at NaN
            optimizer.zero_grad()
            losses.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 35.0)
            optimizer.step()

    return epoch


def seconds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each job, which take turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def waiting(data: Data, rounds: int) -> float:
    """Share of an epoch in which no batch was ready, one process loading."""
    epoch = ours(data.train, processes=1)
    return statistics.median([epoch()["time/input_wait"] for _ in range(rounds + 1)][1:])


def scoring_share(data: Data, rounds: int) -> float:
    """Share of evaluation that is scoring, of a network that knows something: it is trained a little."""
    torch.manual_seed(0)
    loader = train_loader(data.train, BATCH, 0, 0)
    model = retinanet_tiny(data.train.num_classes, FocalLoss(), SmoothL1(weight=4.0), 0.01)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    state = RunState(model, optimizer, one_cycle(optimizer, 3, len(loader)))
    list(fit(state, loader, CPU, 0, 3, clip_grad=35.0))
    model.eval()
    found: list[scoring.Detection] = []

    def detect() -> None:
        found[:] = scoring.detect(model, val_loader(data.val, BATCH, 0), data.val.category_ids, CPU)

    took = seconds({"detect": detect, "score": lambda: scoring.judge(data.val.coco, found)}, rounds)
    return took["score"] / (took["detect"] + took["score"])


def _worker(rank: int, world: int, folder: str, images: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    epoch = ours(shapes(images, 1).train, 0, rank, world)
    rates = [epoch()["time/images_per_s"] * world for _ in range(rounds + 1)][1:]
    if rank == 0:
        Path(folder, "rate").write_text(str(statistics.median(rates)))
    dist.destroy_process_group()


def two_workers(images: int, rounds: int) -> float:
    """Images a second of two workers with a thread each."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (2, folder, images, rounds), nprocs=2)
        return float(Path(folder, "rate").read_text())


def rows(images: int, rounds: int) -> list[tuple[str, float, str]]:
    """What, value, target."""
    drawn = shapes(images, 1).train
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write_folder(root, images=images // 2, size=256)
        files = coco_folder(str(root))
        took = seconds({"ours": ours(drawn, 0), "reference": reference(drawn, 0)}, rounds)
        read = seconds({"ours": ours(files.train, 0), "reference": reference(files.train, 0)}, rounds)
        waited, scored = waiting(files, rounds), scoring_share(files, rounds)
    half = shapes(images // 2, 1).train
    grown = seconds({"half": ours(half, 0), "whole": ours(drawn, 0)}, rounds)
    alone = images / grown["whole"]
    return [
        ("our loop against torchvision's, images/s, drawn 96-pixel images", took["reference"] / took["ours"], ">= 1.3"),
        ("our loop against torchvision's, images/s, 256-pixel files", read["reference"] / read["ours"], ">= 1.3"),
        ("share of an epoch that waits for images, 256-pixel files", waited, "<= 0.05"),
        ("share of evaluation that is scoring", scored, "<= 0.10"),
        ("time of N images against twice that of N / 2", grown["whole"] / grown["half"] / 2, "<= 1.05"),
        ("2 workers of 1 thread against 1 worker of 2, images/s", two_workers(images, rounds) / alone, ">= 1.0"),
        (
            f"to compare: images/s of our loop, drawn images, {torch.get_num_threads()} threads",
            images / took["ours"],
            "",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print("| training and scoring, medians | measured | target |\n|---|---|---|")
    for label, value, target in rows(given.images, given.rounds):
        print(f"| {label} | {value:.2f} | {target} |")


if __name__ == "__main__":
    main()
