"""Batches: every image once an epoch, in an order that depends on seed and epoch alone."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghm.data import shapes, train_loader, val_loader
from ghm.data.loader import Batches, collate
from ghm.settings import targets

WIDE = [True, False, True, True, False, True, False, True, True, True, False, True, True, True, False, True, True]


@pytest.fixture(scope="module")
def data():
    flip = targets.call({"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.5})
    return shapes(13, 10, image_size=32, augment=flip)


def shares(is_wide, batch_size, world=1, accumulate=1, seed=0, epoch=0):
    """What each rank loads: a list of batches of (index, seed)."""
    ranks = [Batches(is_wide, batch_size, seed, rank, world, accumulate) for rank in range(world)]
    for rank in ranks:
        rank.set_epoch(epoch)
    loaded = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(batches) for batches in loaded]
    return loaded


def steps(loaded, accumulate=1):
    """The batches of each step: those of all ranks, `accumulate` of each."""
    assert len({len(batches) for batches in loaded}) == 1
    assert len(loaded[0]) % accumulate == 0
    places = range(0, len(loaded[0]), accumulate)
    return [[batch for batches in loaded for batch in batches[place : place + accumulate]] for place in places]


def unions(loaded, accumulate=1):
    """The images of each step and their seeds, whoever loads them."""
    return [sorted(itertools.chain.from_iterable(step)) for step in steps(loaded, accumulate)]


def order(**settings):
    [batches] = shares(**{"is_wide": WIDE, "batch_size": 4} | settings)
    return [[index for index, _ in batch] for batch in batches]


def seeds(**settings):
    return dict(itertools.chain.from_iterable(shares(WIDE, 4, **settings)[0]))


# Sharing out


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("images", [6, 12, 17, 29])
def test_workers_and_parts_share_out_the_same_steps(world, accumulate, epoch, images):
    is_wide = (WIDE * 2)[:images]
    loaded = shares(is_wide, 12, world, accumulate, epoch=epoch)
    assert unions(loaded, accumulate) == unions(shares(is_wide, 12, epoch=epoch))


@given(st.data())
def test_each_image_comes_once_and_no_worker_waits_for_another(data):
    world, accumulate = data.draw(st.integers(1, 5), "world"), data.draw(st.integers(1, 4), "accumulate")
    batch_size = world * accumulate * data.draw(st.integers(1, 4), "share")
    is_wide = data.draw(st.lists(st.booleans(), min_size=world * accumulate, max_size=90), "is_wide")
    chance = {"seed": data.draw(st.integers(0, 2**32), "seed"), "epoch": data.draw(st.integers(0, 500), "epoch")}
    loaded = shares(is_wide, batch_size, world, accumulate, **chance)
    seen = [index for batches in loaded for batch in batches for index, _ in batch]
    assert sorted(seen) == list(range(len(is_wide)))
    made = steps(loaded, accumulate)
    for step in made:
        sizes = [len(batch) for batch in step]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1
    assert len(made) == max(len(is_wide) // batch_size, 1)
    assert unions(loaded, accumulate) == unions(shares(is_wide, batch_size, **chance))
    # What is left over makes no step much larger than the others.
    totals = [sum(map(len, step)) for step in made]
    assert max(totals) - min(totals) <= 1
    # Of each kind, less than a step is left over; each of these can make one step a mixed one.
    mixed = [{is_wide[index] for batch in step for index, _ in batch} == {True, False} for step in made]
    assert sum(mixed) <= 1 + len(is_wide) % batch_size


def kinds(is_wide, **settings):
    """How many images of each kind every step has."""
    return [Counter(is_wide[index] for index in step) for step in order(is_wide=is_wide, **settings)]


def test_wide_and_high_images_stay_apart_but_for_what_is_left_over():
    third = [place % 3 == 0 for place in range(120)]  # 40 wide, 80 high
    for epoch in range(5):
        pure = kinds(third, batch_size=8, epoch=epoch)
        assert sorted(tuple(kind.items()) for kind in pure) == [((False, 8),)] * 10 + [((True, 8),)] * 5
        # Both come all along, not one after the other.
        assert len(set().union(*pure[:10])) == len(set().union(*pure[5:])) == 2
    half = [place % 2 == 0 for place in range(36)]  # two of each are left over
    assert sorted(tuple(sorted(kind.values())) for kind in kinds(half, batch_size=4)) == [(2, 2), *[(4,)] * 8]


def test_what_is_left_over_is_spread_over_the_steps():
    sizes = [len(batch) for batch in order(is_wide=[True] * 19, batch_size=4)]
    assert sorted(sizes) == [4, 5, 5, 5]
    assert [len(batch) for batch in order(is_wide=[True] * 3, batch_size=4)] == [3]


# Chance


@pytest.mark.parametrize("of", [order, seeds])
def test_order_and_seeds_depend_on_seed_and_epoch_alone(of):
    torch.manual_seed(1)
    first = of(seed=3, epoch=2)
    torch.manual_seed(2)
    assert of(seed=3, epoch=2) == first
    assert of(seed=3, epoch=1) != first
    assert of(seed=4, epoch=2) != first


def test_an_epochs_order_does_not_depend_on_the_epochs_before():
    batches = Batches(WIDE, 4, seed=1)
    for epoch in (0, 1, 2):
        batches.set_epoch(epoch)
        unbroken = list(batches)
    assert [unbroken] == shares(WIDE, 4, seed=1, epoch=2)
    assert unbroken == list(batches)


def test_every_image_gets_its_own_seed_each_epoch():
    drawn = [seed for epoch in range(20) for seed in seeds(epoch=epoch).values()]
    assert len(set(drawn)) == len(drawn) == 20 * len(WIDE)


def test_a_seed_belongs_to_its_image_whatever_the_batch_size():
    [batches] = shares(WIDE, 7, seed=2, epoch=3)
    assert dict(itertools.chain.from_iterable(batches)) == seeds(seed=2, epoch=3)


# Errors


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulate"), [(0, 1, 1), (-2, 1, 1), (3, 2, 1), (1, 2, 1), (3, 1, 2), (6, 2, 2)]
)
def test_a_batch_size_that_cannot_be_shared_is_named(data, batch_size, world, accumulate):
    said = rf"^batch_size={batch_size}: must be a multiple of .*num_workers={world} times accumulate={accumulate}"
    with pytest.raises(ValueError, match=said):
        train_loader(data.train, batch_size, 0, 0, 0, world, accumulate)


@pytest.mark.parametrize(("world", "accumulate"), [(14, 1), (1, 14), (7, 2)])
def test_fewer_images_than_workers_and_parts_are_named(data, world, accumulate):
    with pytest.raises(ValueError, match=r"^batch_size=28: 13 training images do not go round; lower it"):
        train_loader(data.train, 28, 0, 0, 0, world, accumulate)
    Batches([True] * 14, 28, 0, 0, world, accumulate)


# Loading


def epochs(data, processes, numbers, **settings):
    """Images and targets of some epochs by one loader."""
    loader = train_loader(data.train, 4, processes, 0, **settings)
    loaded = []
    for epoch in numbers:
        loader.batch_sampler.set_epoch(epoch)
        loaded.append(list(loader))
    return loaded


def same(first, second):
    return all(
        torch.equal(image, other) and all(torch.equal(target[name], others[name]) for name in target)
        for (images, targets), (more, others_targets) in zip(first, second, strict=True)
        for image, target, other, others in zip(images, targets, more, others_targets, strict=True)
    )


def ids(batches):
    return [[int(target["image_id"]) for target in targets] for _, targets in batches]


def test_a_process_beside_loads_the_same_epochs_and_each_is_another(data):
    here, there = (epochs(data, processes, range(3)) for processes in (0, 1))
    assert all(same(*pair) for pair in zip(here, there, strict=True))
    assert len({str(ids(epoch)) for epoch in there}) == 3

    def picture(epoch, number):
        return next(i for images, ts in epoch for i, t in zip(images, ts, strict=True) if t["image_id"] == number)

    # Some are flipped in one epoch and not in another.
    assert any(not torch.equal(picture(there[0], n), picture(there[1], n)) for n in range(1, 14))


@pytest.mark.parametrize("processes", [0, 1])
def test_an_epoch_is_the_same_after_a_restart(data, processes):
    assert same(epochs(data, processes, range(2))[1], epochs(data, processes, [1])[0])


def test_workers_load_the_shares_of_their_ranks(data):
    both = [ids(epochs(data, 0, [4], rank=rank, world=2, accumulate=2)[0]) for rank in (0, 1)]
    expected = [
        [[index + 1 for index, _ in batch] for batch in batches]
        for batches in shares(data.train.is_wide, 4, 2, 2, epoch=4)
    ]
    assert both == expected


def test_loading_in_another_process_gives_the_same_images(data):
    here, there = ([*val_loader(data.val, 4, processes, 0, 1)] for processes in (0, 1))
    assert same(here, there)


@pytest.mark.parametrize("world", [1, 2, 3, 11])
@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_val_shares_are_disjoint_and_complete(data, world, batch_size):
    shared = [ids(val_loader(data.val, batch_size, 0, rank, world)) for rank in range(world)]
    seen = [image for share in shared for batch in share for image in batch]
    # No padding: an image scored twice would count twice.
    assert sorted(seen) == list(range(1, 11))
    assert all(len(batch) <= max(batch_size // world, 1) for share in shared for batch in share)
    sizes = [sum(map(len, share)) for share in shared]
    assert max(sizes) - min(sizes) <= 1


def test_images_of_different_sizes_share_a_batch():
    items = [
        (torch.zeros(3, 4, 5), {"image_id": torch.tensor(1)}),
        (torch.zeros(3, 7, 2), {"image_id": torch.tensor(2)}),
    ]
    images, targets = collate(items)
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 7, 2)]
    assert [int(target["image_id"]) for target in targets] == [1, 2]
