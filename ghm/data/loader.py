"""Batches: every image once an epoch, in an order that seed and epoch alone decide."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset

from ghm.data.coco import DetectionDataset

Item = tuple[Tensor, dict[str, Tensor]]
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def collate(items: list[Item]) -> Batch:
    """Images differ in size, so a batch is a list of images and a list of targets."""
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)


def train_loader(
    dataset: DetectionDataset, batch_size: int, processes: int, seed: int, rank: int, world: int
) -> DataLoader[Item]:
    """Shuffled batches for one of `world` workers; `batch_size` counts the images of all workers.

    Its sampler's `set_epoch` chooses the order. `processes` load images beside the training process.
    """
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"batch_size={batch_size}: must be a multiple of scaling.num_workers={world}")
    sampler: DistributedSampler[int] = DistributedSampler(dataset, world, rank, shuffle=True, seed=seed)
    return DataLoader(
        dataset,
        batch_size // world,
        sampler=sampler,
        num_workers=processes,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),  # not persistent_workers: their random state would outlive the epoch
    )


def val_loader(dataset: DetectionDataset, batch_size: int, processes: int, rank: int, world: int) -> DataLoader[Item]:
    """This worker's share of the images, each image in exactly one share."""
    share = Subset(dataset, range(rank, len(dataset), world))
    return DataLoader(share, max(batch_size // world, 1), num_workers=processes, collate_fn=collate)
