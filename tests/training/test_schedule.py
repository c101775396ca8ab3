"""Learning rates at the steps that matter."""

import pytest
import torch

from ghm.training.schedule import multi_step, one_cycle


def optimizer(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rates(make, steps, *peaks):
    """The rate of each parameter group at each of `steps` optimizer steps."""
    used = optimizer(*peaks)
    scheduler = make(used)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in used.param_groups])
        used.step()
        scheduler.step()
    return torch.tensor(seen, dtype=torch.float64)


def test_multi_step_falls_at_the_milestones():
    # The paper: 14 epochs, times 0.1 after 9 and 12.
    seen = rates(lambda o: multi_step(o, epochs=14, steps_per_epoch=5, milestones=[9, 12]), 70, 0.01)[:, 0]
    expected = torch.tensor([0.01] * 45 + [0.001] * 15 + [0.0001] * 10, dtype=torch.float64)
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.001), (1, 0.001 + 0.999 / 4), (2, 0.001 + 0.999 / 2), (4, 1.0), (5, 1.0), (6, 0.5), (9, 0.25), (11, 0.25)],
)
def test_multi_step_warms_up_linearly_from_a_thousandth(step, factor):
    def make(used):
        return multi_step(used, epochs=4, steps_per_epoch=3, milestones=[2, 3], gamma=0.5, warmup_steps=4)

    assert rates(make, 12, 0.2)[step, 0].item() == pytest.approx(0.2 * factor)


def test_multi_step_warm_up_may_outlast_a_milestone():
    def make(used):
        return multi_step(used, epochs=2, steps_per_epoch=4, milestones=[1], gamma=0.1, warmup_steps=8)

    assert rates(make, 8, 1.0)[6, 0].item() == pytest.approx(0.1 * (0.001 + 0.999 * 6 / 8))


def test_multi_step_keeps_the_ratio_of_groups():
    seen = rates(lambda o: multi_step(o, 4, 3, [2], warmup_steps=5), 12, 0.1, 0.01)
    torch.testing.assert_close(seen[:, 0], 10 * seen[:, 1])


@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5])
def test_one_cycle_peaks_after_its_warm_up_and_ends_near_nothing(warmup):
    steps = 100
    seen = rates(lambda o: one_cycle(o, epochs=20, steps_per_epoch=5, warmup=warmup), steps, 0.3)[:, 0]
    peak = int(seen.argmax())
    assert peak == pytest.approx(warmup * steps, abs=1)
    assert seen[peak].item() == pytest.approx(0.3)
    assert seen[: peak + 1].diff().gt(0).all()
    assert seen[peak:].diff().lt(0).all()
    assert seen[-1] < 0.3e-3
    assert seen[0] < 0.3 / 10


def test_one_cycle_takes_each_groups_rate_for_its_peak():
    seen = rates(lambda o: one_cycle(o, epochs=10, steps_per_epoch=4), 40, 0.1, 0.02)
    torch.testing.assert_close(seen.max(dim=0).values, torch.tensor([0.1, 0.02], dtype=torch.float64))


def test_one_cycle_leaves_the_momentum_alone():
    used = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    one_cycle(used, epochs=2, steps_per_epoch=4)
    assert used.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "warmup"),
    [
        (1, 1, 0.2),
        (4, 1, 0.0),
        (14, 1, 0.2),
        (5, 1, 0.2),  # the rise takes one step
        (1, 5, 0.2),
        (2, 1, 0.5),
        (1, 1, 1.0),
    ],
)
def test_one_cycle_takes_any_number_of_steps(epochs, steps_per_epoch, warmup):
    seen = rates(lambda o: one_cycle(o, epochs, steps_per_epoch, warmup), epochs * steps_per_epoch, 1.0)
    assert seen.isfinite().all()
    assert seen.ge(0).all()
    assert seen.le(1.0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda used: one_cycle(used, epochs=4, steps_per_epoch=3),
        lambda used: multi_step(used, epochs=4, steps_per_epoch=3, milestones=[2, 3], warmup_steps=4),
    ],
    ids=["one_cycle", "multi_step"],
)
def test_a_restored_schedule_continues(make):
    unbroken = rates(make, 12, 0.1)[:, 0]
    first = optimizer(0.1)
    scheduler = make(first)
    for _ in range(5):
        first.step()
        scheduler.step()
    second = optimizer(0.1)
    restored = make(second)
    second.load_state_dict(first.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    for expected in unbroken[5:].tolist():
        assert second.param_groups[0]["lr"] == pytest.approx(expected)
        second.step()
        restored.step()
