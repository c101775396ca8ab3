"""The training loop: it learns, it can be interrupted, and it says what went wrong."""

import pytest
import torch
from torch import nn

from ghm.checkpoint import RunState
from ghm.data import shapes, train_loader
from ghm.engine import fit
from ghm.losses import GHMC, GHMR, CrossEntropy, SmoothL1
from ghm.models import retinanet_tiny
from ghm.schedule import multi_step, one_cycle

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def ghm_losses():
    return GHMC(bins=10, momentum=0.75, strength_warmup=6), GHMR(weight=4.0)


def plain_losses():
    return CrossEntropy(weight=20.0), SmoothL1(weight=4.0)


def start(images, losses=ghm_losses, seed=0, epochs=3, batch_size=2, schedule=one_cycle, rate=2e-3):
    """A small run, fresh: its state and its data."""
    loader = train_loader(shapes(images, 1, image_size=48, max_objects=2, seed=0).train, batch_size, 0, 0)
    torch.manual_seed(seed)
    model = retinanet_tiny(4, *losses(), 0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    extra = {"milestones": [2]} if schedule is multi_step else {}
    scheduler = schedule(optimizer, epochs=epochs, steps_per_epoch=len(loader), **extra)
    return RunState(model, optimizer, scheduler), loader


def go(state, loader, first, last, clip_grad=35.0, **options):
    state.epoch = first
    return fit(state, loader, CPU, 0, last, clip_grad=clip_grad, **options)


def values(result):
    """What of an epoch's metrics does not depend on the clock."""
    return {name: value for name, value in result.metrics.items() if not name.startswith("time/")}


# The harmonized classification loss has a floor near 1 whatever is learned (ghm.md, finding 4). Over
# eight seeds the shares were at most 0.10 and 0.47.
@pytest.mark.parametrize(
    ("losses", "falls", "share"), [(plain_losses, "train/loss", 0.3), (ghm_losses, "train/loss_box", 0.7)]
)
def test_the_loss_falls_when_two_images_are_learned_by_heart(losses, falls, share):
    state, loader = start(2, losses, epochs=60)
    seen = [result.metrics[falls] for result in go(state, loader, 0, 60)]
    assert sum(seen[-3:]) < share * sum(seen[:3])


def test_an_epoch_reports_every_value_by_its_name():
    state, loader = start(5, batch_size=2)
    results = list(go(state, loader, 0, 2))
    assert [(r.epoch, r.step) for r in results] == [(1, 3), (2, 6)]
    for result in results:
        assert set(result.metrics) == {
            "train/loss",
            "train/loss_cls",
            "train/loss_box",
            "train/ce",
            "train/lr",
            "time/images_per_s",
            "time/input_wait",
        }
        assert all(type(value) is float for value in result.metrics.values())
        parts = result.metrics["train/loss_cls"] + result.metrics["train/loss_box"]
        assert result.metrics["train/loss"] == pytest.approx(parts, rel=1e-5)
        assert result.metrics["time/images_per_s"] > 0
        assert 0 <= result.metrics["time/input_wait"] < 1


@pytest.mark.parametrize("schedule", [one_cycle, multi_step])
@pytest.mark.parametrize("stop", [1, 2])
def test_an_epoch_after_a_restart_equals_the_same_epoch_unbroken(tmp_path, schedule, stop):
    unbroken, loader = start(6, schedule=schedule)
    expected = [values(result) for result in go(unbroken, loader, 0, 3)]

    first, loader = start(6, schedule=schedule)
    for result in go(first, loader, 0, 3):
        if result.epoch == stop:
            first.epoch = stop
            first.save(tmp_path / "last.pt")
            break  # here the run is killed

    # Another seed: nothing of the new run's beginning may matter.
    second, loader = start(6, schedule=schedule, seed=1)
    second.load(tmp_path / "last.pt")
    assert [values(result) for result in go(second, loader, second.epoch, 3)] == expected[stop:]
    state = unbroken.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.model.state_dict().items())


def test_what_happens_between_epochs_does_not_matter():
    quiet, loader = start(4)
    expected = [values(result) for result in go(quiet, loader, 0, 2)]
    noisy, loader = start(4)
    got = []
    for result in go(noisy, loader, 0, 2):
        got.append(values(result))
        noisy.model.eval()
        with torch.no_grad():
            noisy.model([torch.rand(3, 48, 48)])
    assert got == expected


class Line(nn.Module):
    """The smallest thing that `fit` trains: one number, and losses that the image ids choose."""

    def __init__(self, losses):
        super().__init__()
        self.weight, self.losses, self.modes = nn.Parameter(torch.zeros(())), losses, []

    def forward(self, images, targets):
        self.modes.append(self.training)
        return self.losses(self.weight, [int(target["image_id"]) for target in targets])


def line(losses, rate=1.0, epochs=1, steps=1, **schedule):
    model = Line(losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return RunState(model, optimizer, multi_step(optimizer, epochs, steps, **({"milestones": []} | schedule)))


def fit_line(losses, images=4, batch_size=1, clip_grad=None, epochs=1, rate=1.0):
    loader = train_loader(shapes(images, 1, image_size=32).train, batch_size, 0, 0)
    state = line(losses, rate, epochs, len(loader))
    return state.model, list(fit(state, loader, CPU, 0, epochs, clip_grad=clip_grad))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_images(bad):
    def losses(weight, ids):
        return {"loss_cls": weight + (bad if 3 in ids else 1.0), "loss_box": weight * 0 + 0.5}

    with pytest.raises(FloatingPointError, match=rf"loss={bad} in epoch 1 \(loss_cls={bad}, loss_box=0.5\)") as stop:
        fit_line(losses)
    assert "on images [3]" in str(stop.value)


def test_a_loss_that_is_not_finite_moves_no_weight():
    state = line(lambda weight, ids: {"loss_cls": weight * float("nan")})
    loader = train_loader(shapes(2, 1, image_size=32).train, 2, 0, 0)
    with pytest.raises(FloatingPointError):
        list(fit(state, loader, CPU, 0, 1))
    assert state.model.weight.item() == 0


def test_only_what_is_called_a_loss_is_minimised():
    model, [result] = fit_line(lambda w, ids: {"loss_cls": 2 * w, "loss_box": w, "ce": 100 * w, "note": w * 0 + 7})
    assert model.weight.item() == pytest.approx(-3 * 4)
    # The weight before each of the four steps was 0, -3, -6, -9.
    assert result.metrics["train/loss"] == pytest.approx(3 * -4.5)
    assert result.metrics["train/ce"] == pytest.approx(100 * -4.5)
    assert result.metrics["train/note"] == pytest.approx(7)
    assert all(model.modes)


@pytest.mark.parametrize(("clip_grad", "moved"), [(None, 4 * 50.0), (2.0, 4 * 2.0), (100.0, 4 * 50.0)])
def test_gradients_are_clipped_to_their_norm(clip_grad, moved):
    model, _ = fit_line(lambda w, ids: {"loss_cls": -50 * w}, clip_grad=clip_grad)
    assert model.weight.item() == pytest.approx(moved)


def test_each_epoch_has_an_order_of_its_own():
    seen = []

    def losses(weight, ids):
        seen.extend(ids)
        return {"loss_cls": weight * 0}

    fit_line(losses, images=8, epochs=3)
    epochs = [tuple(seen[i : i + 8]) for i in (0, 8, 16)]
    assert all(sorted(epoch) == list(range(1, 9)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_the_rate_steps_with_the_optimizer():
    state = line(lambda weight, ids: {"loss_cls": -weight}, epochs=2, steps=2, milestones=[1], gamma=0.1)
    results = list(fit(state, train_loader(shapes(4, 1, image_size=32).train, 2, 0, 0), CPU, 0, 2))
    # Two steps at 1, two at 0.1; what is reported is the rate of the step to come.
    assert state.model.weight.item() == pytest.approx(2.2)
    assert [result.metrics["train/lr"] for result in results] == pytest.approx([0.1, 0.1])


def test_nothing_is_left_to_do_after_the_last_epoch():
    state, loader = start(2)
    assert list(go(state, loader, 3, 3)) == []
