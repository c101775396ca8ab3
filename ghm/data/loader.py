"""Batches: every image once an epoch, in an order that seed and epoch alone decide."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ghm.data.dataset import DetectionDataset

Item = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def collate(items: list[Item]) -> Batch:
    """Images differ in size, so a batch is a list of images and a list of targets."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


class Packed(NamedTuple):
    """A batch as few tensors: each that comes from another process costs the receiver a tenth of a millisecond."""

    values: dict[str, Tensor]  # of all images, one after the other
    shapes: dict[str, list[torch.Size]]  # of each image's


def pack(items: list[Item]) -> Packed:
    rows = [{"image": image, **target} for image, target in items]
    shapes = {name: [row[name].shape for row in rows] for name in rows[0]}
    return Packed({name: torch.cat([row[name].flatten() for row in rows]) for name in rows[0]}, shapes)


def unpack(batch: Packed) -> Batch:
    columns = {
        name: [part.view(shape) for part, shape in zip(values.split([s.numel() for s in shapes]), shapes, strict=True)]
        for (name, values), shapes in zip(batch.values.items(), batch.shapes.values(), strict=True)
    }
    images = columns.pop("image")
    return images, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class PackedLoader(DataLoader[Item]):
    """Loads in other processes, and gives what `collate` would."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return map(unpack, super().__iter__())


class Batches(Sampler[list[tuple[int, int]]]):
    """What one of `world` workers loads: `(index, seed)` pairs, `accumulate` lists of them a step.

    The images of a step do not depend on `world` or `accumulate`, which only share them out, nor does
    the seed by which an image is augmented: 1 worker with 4 images and 2 with 2 train on the same. A step
    holds images of one kind, wide or high, but for what is left over at the end of each kind. Of that, what
    makes no whole step joins others, as it may be too little to go round.
    """

    def __init__(
        self, is_wide: list[bool], batch_size: int, seed: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        shares = world * accumulate
        if batch_size < 1 or batch_size % shares:
            raise ValueError(
                f"batch_size={batch_size}: must be a multiple of scaling.num_workers={world} times "
                f"accumulate={accumulate}"
            )
        if len(is_wide) < shares:
            raise ValueError(f"batch_size={batch_size}: {len(is_wide)} training images do not go round; lower it")
        self.is_wide, self.batch_size, self.seed = is_wide, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Of an epoch; as many as `_steps` deals out, without dealing."""
        return max(len(self.is_wide) // self.batch_size, 1)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shares = self.world * self.accumulate
        for step in self._steps():
            for part in range(self.accumulate):
                own = step[part * self.world + self.rank :: shares]
                yield [(index, hash((self.seed, self.epoch, index))) for index in own]

    def _steps(self) -> list[list[int]]:
        """The images of each step, over all workers."""
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        order = torch.randperm(len(self.is_wide), generator=generator).tolist()
        steps: list[list[int]] = []
        left: list[int] = []
        for wide in (True, False):
            kind = [index for index in order if self.is_wide[index] is wide]
            whole = len(kind) - len(kind) % self.batch_size
            steps += [kind[start : start + self.batch_size] for start in range(0, whole, self.batch_size)]
            left += kind[whole:]
        steps = [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
        steps += [left[start : start + self.batch_size] for start in range(0, len(left), self.batch_size)]
        if len(steps) > 1 and len(steps[-1]) < self.batch_size:  # may be too few to go round
            for place, index in enumerate(steps.pop()):
                steps[place % len(steps)].append(index)
        return steps


def train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    processes: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> DataLoader[Item]:
    """Shuffled batches for one of `world` workers; `batch_size` counts the images of a step, of all workers.

    Its `batch_sampler` is a `Batches`, whose `set_epoch` chooses the order. `processes` load images
    beside the training process.
    """
    batches = Batches(dataset.is_wide, batch_size, seed, rank, world, accumulate)
    return _loader(dataset, processes, batch_sampler=batches)


def val_loader(
    dataset: DetectionDataset, batch_size: int, processes: int, rank: int = 0, world: int = 1
) -> DataLoader[Item]:
    """This worker's share of the images, each image in exactly one share."""
    share = Subset(dataset, range(rank, len(dataset), world))
    return _loader(share, processes, batch_size=max(batch_size // world, 1))


def some_loader(dataset: DetectionDataset, number: int, batch_size: int, processes: int) -> DataLoader[Item]:
    """At most `number` of the images, evenly spread over all of them and not augmented."""
    number = min(number, len(dataset))
    some = Subset(dataset, [place * len(dataset) // number for place in range(number)])
    return _loader(some, processes, batch_size=batch_size)


def _loader(dataset: Dataset[Item], processes: int, **batches: Any) -> DataLoader[Item]:
    options = batches | {"pin_memory": torch.cuda.is_available()}
    if not processes:
        return DataLoader(dataset, collate_fn=collate, **options)
    return PackedLoader(dataset, collate_fn=pack, num_workers=processes, persistent_workers=True, **options)
