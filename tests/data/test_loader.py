"""Batches: every image once an epoch, in an order that depends on seed and epoch alone."""

import pytest
import torch

from ghm.data import shapes, train_loader, val_loader
from ghm.data.loader import collate


@pytest.fixture(scope="module")
def data():
    return shapes(12, 10, image_size=32)


def ids(loader, epoch=None):
    """The image ids of each batch."""
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [[int(target["image_id"]) for target in targets] for _, targets in loader]


def order(data, seed=0, epoch=0, rank=0, world=1, batch_size=4):
    return ids(train_loader(data.train, batch_size, 0, seed, rank, world), epoch)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_each_image_comes_once_an_epoch_over_all_ranks(data, world, epoch):
    shares = [order(data, epoch=epoch, rank=rank, world=world, batch_size=2 * world) for rank in range(world)]
    seen = [image for share in shares for batch in share for image in batch]
    assert sorted(seen) == list(range(1, 13))
    # The batch size counts all ranks' images, and no rank does more steps than another.
    assert all([len(batch) for batch in share] == [2] * (12 // (2 * world)) for share in shares)


def test_the_order_depends_on_seed_and_epoch_alone(data):
    torch.manual_seed(1)
    first = order(data, seed=3, epoch=2)
    torch.manual_seed(2)
    assert order(data, seed=3, epoch=2) == first
    assert order(data, seed=3, epoch=1) != first
    assert order(data, seed=4, epoch=2) != first


def test_an_epoch_has_the_same_order_after_a_restart(data):
    loader = train_loader(data.train, 4, 0, 0, 0, 1)
    unbroken = [ids(loader, epoch) for epoch in range(3)]
    assert ids(train_loader(data.train, 4, 0, 0, 0, 1), 2) == unbroken[2]


def pictures(loader, epoch):
    """All images of an epoch, seeded as the engine does it."""
    torch.manual_seed(hash((0, epoch)))
    loader.sampler.set_epoch(epoch)
    return torch.cat([torch.stack(images) for images, _ in loader])


@pytest.mark.parametrize(
    "processes",
    [
        0,
        1,
    ],
)
def test_an_epoch_is_flipped_alike_after_a_restart(data, processes):
    unbroken, restarted = (train_loader(data.train, 4, processes, 0, 0, 1) for _ in range(2))
    pictures(unbroken, 0)
    assert torch.equal(pictures(unbroken, 1), pictures(restarted, 1))


def test_loading_in_another_process_gives_the_same_images(data):
    here, there = ([*val_loader(data.val, 4, processes, 0, 1)] for processes in (0, 1))
    for (images, targets), (others, other_targets) in zip(here, there, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, others, strict=True))
        assert all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(targets, other_targets, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 11])
@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_val_shares_are_disjoint_and_complete(data, world, batch_size):
    shares = [ids(val_loader(data.val, batch_size, 0, rank, world)) for rank in range(world)]
    seen = [image for share in shares for batch in share for image in batch]
    # No padding: an image scored twice would count twice.
    assert sorted(seen) == list(range(1, 11))
    assert all(len(batch) <= max(batch_size // world, 1) for share in shares for batch in share)


def test_images_of_different_sizes_share_a_batch():
    items = [
        (torch.zeros(3, 4, 5), {"image_id": torch.tensor(1)}),
        (torch.zeros(3, 7, 2), {"image_id": torch.tensor(2)}),
    ]
    images, targets = collate(items)
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 7, 2)]
    assert [int(target["image_id"]) for target in targets] == [1, 2]


@pytest.mark.parametrize(("batch_size", "world"), [(0, 1), (-2, 1), (3, 2), (1, 2)])
def test_a_batch_size_that_cannot_be_shared_is_named(data, batch_size, world):
    with pytest.raises(ValueError, match=f"^batch_size={batch_size}: must be a multiple of .*{world}"):
        train_loader(data.train, batch_size, 0, 0, 0, world)
