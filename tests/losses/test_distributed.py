"""Several processes with shares of a batch against one process with all of it."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ghm.losses import ASL1, GHMC, GHMR, MMDET, OHEM, CrossEntropy, FocalLoss, SmoothL1, SoftmaxGHMC, diagnose
from tests.losses.gradient import assert_same_state, state_of, value_and_gradient

WORLDS = (2, 4)
LEVELS = [24, 12, 4]  # rows of each pyramid level, of all ranks together
# Of each level the part that ranks 0, 1, .. have, step after step: even, uneven, all, none, hardly any.
SHARES = {
    2: [[1, 1], [3, 1], [1, 0], [0, 1], [1, 11]],
    4: [[1, 1, 1, 1], [3, 0, 1, 2], [0, 0, 1, 0], [1, 0, 0, 3], [1, 5, 5, 1]],
}
STEPS = len(SHARES[2])

GHM_C = {
    "occupied": {},
    "all": {"momentum": 0.5, "normalize": "all"},
    "softened": {"strength": 0.7, "strength_warmup": 2},
    "limited": {"max_weight": 1.5},
    "matched": {"matched": True},
    "by level": {"scope": "level"},
    "shared": {"scope": "shared"},
    "accumulated": {"accumulation": 2},
}
# They count what all ranks have: as if one process had all.
POOLED = {f"ghm_c {name}": partial(GHMC, **{"bins": 10, "momentum": 0.75, **more}) for name, more in GHM_C.items()} | {
    "ghm_r": partial(GHMR, mu=0.5, momentum=0.7),
    "ghm_r by level": partial(GHMR, mu=0.5, scope="level", weight=3.0),
    "softmax": partial(SoftmaxGHMC, bins=10),
    "ghm_c exact": partial(GHMC, bins=10, density="exact", strength=0.7, strength_warmup=2),
    "cross_entropy": CrossEntropy,
    "focal": FocalLoss,
    "asl1": ASL1,
    "smooth_l1": SmoothL1,
}
# Each rank has a density of its own: as if it were alone.
ALONE = {
    "ghm_c local": partial(GHMC, bins=10, momentum=0.75, counts="local"),
    "ghm_c exact local": partial(GHMC, bins=10, density="exact", counts="local"),
    "ghm_r local": partial(GHMR, mu=0.5, counts="local"),
    "mmdet": partial(GHMC, bins=10, momentum=0.75, **MMDET),
}
# Collectives of a forward and backward pass.
COLLECTIVES = dict.fromkeys(POOLED, 1) | dict.fromkeys(ALONE, 0) | {"ghm_r by level": 3, "ghm_c by level": 3}
COLLECTIVES["ghm_c shared"] = 3
COLLECTIVES["ghm_c matched"] = 2  # the counts, and the two sums that are made equal


def joined(step):
    """Features, targets and mask of each level; the logits depend on parameters, as in a detector."""
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(sum(LEVELS), 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(sum(LEVELS), 4, generator=generator) < 0.2).double()
    valid = torch.rand(sum(LEVELS), generator=generator) < 0.8
    return list(zip(*(part.split(LEVELS) for part in (features, targets, valid)), strict=True))


def share(step, rank, world):
    """What a rank has of each level."""
    shares = SHARES[world][step]

    def rows(size):
        return slice(size * sum(shares[:rank]) // sum(shares), size * sum(shares[: rank + 1]) // sum(shares))

    return [tuple(part[rows(len(part))] for part in level) for level in joined(step)]


def call(loss, parameters, levels):
    """The loss of the levels' rows, one level after the other."""
    features, targets, valid = (torch.cat(parts) for parts in zip(*levels, strict=True))
    if isinstance(loss, SoftmaxGHMC):
        targets = targets.argmax(1)
    by_level = {} if getattr(loss, "scope", "pooled") == "pooled" else {"level_sizes": [len(x) for x, _, _ in levels]}
    return loss(features @ parameters, targets, valid, **by_level)


def training(make, rows_of_step):
    """Value, gradient and state after each step."""
    loss, steps = make(), []
    parameters = torch.randn(5, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    for step in range(STEPS):
        value, gradient = value_and_gradient(lambda w, step=step: call(loss, w, rows_of_step(step)), parameters)
        steps.append((value, gradient, state_of(loss)))
    return steps


class Model(nn.Module):
    """A detector in small: it owns its loss, of which the average is a buffer."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4, dtype=torch.float64)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.constant_(self.head.bias, -1.0)
        self.loss = GHMC(bins=10, strength_warmup=2)

    def forward(self, levels):
        features, targets, valid = (torch.cat(parts) for parts in zip(*levels, strict=True))
        return self.loss(self.head(features), targets, valid)


def learn(model, rows_of_step):
    """Parameters and state after steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(rows_of_step(step)).backward()
        optimizer.step()
    return state_of(getattr(model, "module", model))


def on_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    all_reduce, reduced = dist.all_reduce, []

    def counted(tensor, *rest, **more):
        reduced.append(tensor.numel())
        return all_reduce(tensor, *rest, **more)

    dist.all_reduce = counted
    got, collectives = {}, {}
    for name, make in (POOLED | ALONE | {"ohem": OHEM}).items():
        reduced.clear()
        got[name] = training(make, lambda step: share(step, rank, world))
        collectives[name] = list(reduced)
    seen = {name: diagnosis(name, share(1, rank, world)) for name in DIAGNOSED}
    learnt = {
        broadcast: learn(
            DistributedDataParallel(Model(), broadcast_buffers=broadcast), lambda step: share(step, rank, world)
        )
        for broadcast in (False, True)
    }
    torch.save({"steps": got, "collectives": collectives, "seen": seen, "learnt": learnt}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


DIAGNOSED = ["ghm_c occupied", "focal", "cross_entropy"]


def diagnosis(name, levels):
    features, targets, valid = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return vars(diagnose(POOLED[name](), features[:, :4], targets, valid, bins=10))


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def mean(parts):
    """As DistributedDataParallel makes it of gradients, and a report of values."""
    return sum(parts) / len(parts)


@pytest.mark.parametrize("name", POOLED)
def test_several_processes_equal_one_on_the_joined_batch(ranks, name, monkeypatch):
    monkeypatch.setattr("ghm.losses.density.SORTED_UP_TO", -1)  # a grid, as for several ranks
    for step, (value, gradient, state) in enumerate(training(POOLED[name], joined)):
        values, gradients, states = zip(*(rank["steps"][name][step] for rank in ranks), strict=True)
        torch.testing.assert_close(mean(values), value)
        torch.testing.assert_close(mean(gradients), gradient)
        for own in states:
            torch.testing.assert_close(own, state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALONE)
def test_processes_that_count_alone_are_so_many_separate_losses(ranks, name):
    for rank, seen in enumerate(ranks):
        alone = training(ALONE[name], lambda step, rank=rank: share(step, rank, len(ranks)))
        torch.testing.assert_close(seen["steps"][name], alone, rtol=0, atol=0)


@pytest.mark.parametrize("step", range(STEPS))
def test_ohem_mines_the_rows_of_each_process_and_shares_the_mean(ranks, step):
    kept, total = 0, 0.0
    parameters = torch.randn(5, 4, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    for rank in range(len(ranks)):
        features, targets, valid = (torch.cat(parts) for parts in zip(*share(step, rank, len(ranks)), strict=True))
        ce = nn.functional.binary_cross_entropy_with_logits(features @ parameters, targets, reduction="none")[valid]
        positives = ce[targets[valid] > 0]
        hardest = ce[targets[valid] == 0].sort(descending=True).values[: 3 * max(len(positives), 1)]
        kept += len(positives) + len(hardest)
        total += positives.sum() + hardest.sum()
    torch.testing.assert_close(mean([rank["steps"]["ohem"][step][0] for rank in ranks]), total / kept)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_step_sums_a_few_numbers_over_processes_once(ranks, name):
    """Once a density; the exact one, a grid."""
    for rank in ranks:
        sizes = rank["collectives"][name]
        assert len(sizes) == STEPS * COLLECTIVES[name]
        assert all(size <= (2**20 + 1 if "exact" in name else 30 + 1) for size in sizes)


@pytest.mark.parametrize("broadcast", [False, True])
def test_under_distributed_data_parallel_they_learn_what_one_process_learns(ranks, broadcast):
    alone = learn(Model(), joined)
    for rank in ranks:
        torch.testing.assert_close(rank["learnt"][broadcast], alone)
        # To the last bit, so that it does not matter whose average is saved.
        torch.testing.assert_close(rank["learnt"][broadcast], ranks[0]["learnt"][broadcast], rtol=0, atol=0)


@pytest.mark.parametrize("name", DIAGNOSED)
def test_diagnostics_are_those_of_the_joined_batch(ranks, name):
    expected = diagnosis(name, joined(1))
    for rank in ranks:
        torch.testing.assert_close(rank["seen"][name], expected)


def test_without_other_processes_counting_alone_changes_nothing():
    world, local = GHMC(), GHMC(counts="local")
    for step in range(3):
        features, targets, valid = joined(step)[0]
        batch = features[:, :4], targets, valid
        torch.testing.assert_close(value_and_gradient(world, *batch), value_and_gradient(local, *batch))
    assert_same_state(world, local)
