"""Which loss is best for R50 on a COCO folder, tuned alike: the last part of `python -m tests.bench.gpu`.

Each loss gets one training at each learning rate; then the best rate of each is trained on fresh paired seeds.
Several trainings share the GPU, as a small one leaves most of it idle. No Ray: that machine need not have it.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import torch
from torch import nn

from ghm import scoring
from ghm.data import coco_folder, train_loader, val_loader
from ghm.data.dataset import Augment
from ghm.losses import GHMC, GHMR, CrossEntropy, FocalLoss, SmoothL1
from ghm.models import retinanet
from ghm.reports.comparison import Arm, Comparison, compare
from ghm.training import one_cycle
from ghm.training.checkpoint import RunState
from ghm.training.engine import fit

# The seed of the trainings that choose a rate; those that compare have others.
TUNING = 1000
METRICS = ("AP", "AP50", "AP75")


class Losses(NamedTuple):
    classes: Callable[[int], nn.Module]
    """Of the steps over which GHM's strength rises."""
    boxes: Callable[[int], nn.Module]


def _half(steps: int) -> nn.Module:
    return GHMC(strength=0.5, strength_warmup=steps, matched=True, weight=20.0)


def _smooth_l1(_: int) -> nn.Module:
    return SmoothL1(weight=4.0)


# As conf/loss has them, which needs Hydra.
LOSSES = {
    "cross_entropy": Losses(lambda _: CrossEntropy(weight=20.0), _smooth_l1),
    "focal": Losses(lambda _: FocalLoss(), _smooth_l1),
    "ghm_c": Losses(_half, _smooth_l1),
    "ghm": Losses(_half, lambda steps: GHMR(strength=0.5, strength_warmup=steps, matched=True, weight=4.0)),
    "ghm_c at full strength": Losses(lambda steps: GHMC(strength_warmup=steps), _smooth_l1),
}


class Training(NamedTuple):
    loss: str
    rate: float
    seed: int


Scores = dict[str, float]


def train(training: Training, given: argparse.Namespace) -> Scores:
    """METRICS of R50 from nothing after `given.epochs` epochs: AdamW, one cycle, bf16, flips."""
    torch.set_num_threads(1)
    torch.manual_seed(training.seed)
    data, device = coco_folder(str(given.data), augment=_flip()), torch.device(given.device)
    loader = train_loader(data.train, given.images, given.processes, training.seed)
    losses, rise = LOSSES[training.loss], given.epochs * len(loader) * 2 // 3
    pixels = {"min_size": given.data_size, "max_size": 2 * given.data_size}
    built = losses.classes(rise), losses.boxes(rise), 0.01
    model = retinanet("resnet50", data.train.num_classes, *built, **pixels).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.rate, weight_decay=1e-4, fused=True)
    state = RunState(model, optimizer, one_cycle(optimizer, given.epochs, len(loader)))
    amp = "bf16" if device.type == "cuda" else None
    for _ in fit(state, loader, device, training.seed, given.epochs, clip_grad=35.0, amp=amp):
        pass
    batches = val_loader(data.val, given.images, given.processes)
    found = scoring.detect(model.eval(), batches, data.val.category_ids, device)
    scores = scoring.score(data.val.coco, found)
    return {name: scores[name] for name in METRICS}


def _flip() -> Augment:
    from torchvision.transforms import v2  # which imports only after ghm.models

    return v2.RandomHorizontalFlip()


def _fork() -> None:
    """How a training starts the processes that load its images, which need no GPU."""
    multiprocessing.set_start_method("fork", force=True)


def run(trainings: Sequence[Training], given: argparse.Namespace) -> dict[Training, Scores]:
    """Their scores, `given.jobs` trainings at a time; each is printed when it ends, so that none is lost."""
    done: dict[Training, Scores] = {}
    spawn = multiprocessing.get_context("spawn")  # a forked process has no GPU
    with ProcessPoolExecutor(given.jobs, spawn, _fork) as pool:
        waiting = {pool.submit(train, training, given): training for training in trainings}
        for ended in as_completed(waiting):
            training = waiting[ended]
            try:
                done[training] = ended.result()
            except FloatingPointError as error:  # a rate that is too high
                done[training] = dict.fromkeys(METRICS, 0.0)
                print(f"{training}: {error}", file=sys.stderr)
            print(*training, *(f"{done[training][name]:.4f}" for name in METRICS), file=sys.stderr, flush=True)
    return {training: done[training] for training in trainings}


def main(given: argparse.Namespace) -> None:
    names = list(given.losses or LOSSES)
    tuned = run([Training(name, rate, TUNING) for name, rate in itertools.product(names, given.rates)], given)
    print(f"\n| R50 from nothing, {given.epochs} epochs, val/AP by learning rate |", end="")
    print("".join(f" {rate:g} |" for rate in given.rates))
    print("|---|" + "---|" * len(given.rates))
    for name in names:
        print(f"| {name} |" + "".join(f" {tuned[Training(name, r, TUNING)]['AP']:.3f} |" for r in given.rates))
    best = {name: max(given.rates, key=lambda r, n=name: tuned[Training(n, r, TUNING)]["AP"]) for name in names}
    # Seed after seed, so that whatever time allows has all losses of a seed.
    tell(run([Training(name, best[name], seed) for seed in range(given.seeds) for name in names], given))


def tell(compared: Mapping[Training, Scores]) -> None:
    """Print means over seeds, and which differences are real."""
    columns: dict[str, list[Training]] = {}
    for training in compared:
        columns.setdefault(training.loss, []).append(training)
    print("\n| fresh seeds, the best rate of each | seeds | rate | AP ± 95 % | lowest | highest | AP50 | AP75 |")
    print("|---|---|---|---|---|---|---|---|")
    arms = [Arm(loss, loss, {t.seed: compared[t]["AP"] for t in column}) for loss, column in columns.items()]
    for arm in sorted(arms, key=lambda arm: -arm.mean):
        column = columns[arm.label]
        ends = f"{min(arm.values.values()):.3f} | {max(arm.values.values()):.3f}"
        others = " | ".join(f"{statistics.mean(compared[t][name] for t in column):.3f}" for name in METRICS[1:])
        print(f"| {arm.label} | {len(column)} | {column[0].rate:g} | {arm.shown} | {ends} | {others} |")
    print("\n| pair | difference of AP, 95 % | p, of all pairs | |\n|---|---|---|---|")
    for pair in compare(arms):
        print(_row(pair))


def _row(pair: Comparison) -> str:
    one, other = pair.one.label, pair.other.label
    word = "not distinguishable" if not pair.different else f"{one if pair.difference > 0 else other} is better"
    interval = f"{pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f})"
    return f"| {one} - {other} | {interval} | {pair.chance:.3f} | {word} |"
