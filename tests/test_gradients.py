"""Gradient norms of a detector over data, against what its losses are given."""

import copy

import pytest
import torch

from ghm.gradients import ERRORS, REGIONS, Watch, collect, of_the_paper, scalars
from ghm.losses import ASL1, GHMC, GHMR, CrossEntropy, FocalLoss, SmoothL1, SoftmaxCrossEntropy, diagnose
from ghm.models import faster_rcnn_tiny, retinanet_tiny
from tests.models.scenes import Recorder, batch

CLASSES = 3


def detector(cls_loss, box_loss):
    torch.manual_seed(0)
    return retinanet_tiny(CLASSES, cls_loss, box_loss, 0.01)


@pytest.fixture(scope="module")
def batches():
    return [batch((2, 0)), batch((1, 3))]


def calls(batches):
    """What the losses of the same detector are called with."""
    model = detector(Recorder(CrossEntropy()), Recorder(ASL1()))
    for images, targets in batches:
        model.train()(images, copy.deepcopy(targets))
    return [loss.calls for loss in model.losses]


def test_the_losses_of_the_paper_have_their_state_where_the_model_is():
    """On a GPU a density that counts on the host fails at its first batch."""
    losses = [loss for made in of_the_paper(10, 0.02, torch.device("meta")) for loss in made.values()]
    states = [buffer for loss in losses for buffer in loss.buffers()]
    assert {buffer.device.type for buffer in states} == {"meta"}


def test_every_example_is_counted_in_its_region_class_and_level(batches):
    classes, boxes = calls(batches)
    seen = collect(detector(GHMC(), GHMR()), batches, torch.device("cpu"), bins=10, mu=0.02)
    g = [((x.sigmoid() - y.float()).abs()[valid]) for x, y, valid in classes]
    expected = torch.histc(torch.cat(g).double(), 10, 0, 1)
    assert seen.classes["CE"].counts.tolist() == expected.tolist()
    of_class = torch.stack([torch.histc(torch.cat([part[:, c] for part in g]), REGIONS, 0, 1) for c in range(CLASSES)])
    assert (seen.by_class - of_class).abs().sum() <= 2  # histc rounds otherwise at an edge
    assert seen.by_level.shape == (3, REGIONS)
    assert seen.by_level.sum() == seen.by_class.sum() == expected.sum()
    d = torch.cat([(x - y).flatten() for x, y, _ in boxes]).abs().double()
    counted = torch.histogram(d, torch.cat([ERRORS[:-1], torch.tensor([1e9], dtype=torch.float64)])).hist
    assert seen.errors.tolist() == counted.tolist()
    gr = d / (d**2 + 0.02**2).sqrt()
    assert seen.boxes["ASL1"].counts.tolist() == torch.histc(gr, 10, 0, 1).tolist()
    assert seen.boxes_by_level.sum() == len(d)


def test_smooth_l1_has_the_gradient_of_its_definition(batches):
    """Eq. 16: d / delta up to delta, and 1 beyond."""
    seen = collect(detector(CrossEntropy(), SmoothL1(0.1)), batches, torch.device("cpu"), bins=10, mu=0.02)
    assert seen.by_error.keys() == {"SL1", "ASL1", "GHM-R", "this run's SmoothL1"}
    beyond = ERRORS[:-1] >= 0.1
    occupied = beyond & (seen.errors > 0)
    norm = seen.by_error["this run's SmoothL1"][occupied] / seen.errors[occupied]
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=1e-5, atol=1e-5)


def test_nothing_of_the_detector_changes(batches):
    model = detector(GHMC(10, 0.5), GHMR(momentum=0.5)).train()
    model(*copy.deepcopy(batches[0]))
    before, losses = copy.deepcopy(model.state_dict()), model.losses
    collect(model, batches, torch.device("cpu"), bins=10, mu=0.02)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.losses == losses


def test_a_loss_that_is_one_of_the_papers_is_not_drawn_twice(batches):
    def names(cls_loss):
        return set(collect(detector(cls_loss, ASL1()), batches[:1], torch.device("cpu"), 10, 0.02).classes)

    assert names(FocalLoss(weight=3.0)) == {"CE", "FL", "GHM-C"}
    assert names(FocalLoss(gamma=1.0)) == {"CE", "FL", "GHM-C", "this run's FocalLoss"}


def test_classes_that_exclude_one_another_have_no_such_gradient(batches):
    model = faster_rcnn_tiny(CLASSES, SoftmaxCrossEntropy(), SmoothL1(), None)
    seen = collect(model, batches, torch.device("cpu"), bins=10, mu=0.02)
    assert not seen.classes
    assert seen.boxes["SL1"].counts.sum() > 0


def test_a_watch_sees_the_last_step_of_each_epoch(batches):
    model = detector(GHMC(30, 0.0), GHMR(momentum=0.0)).train()
    watch = Watch(model, calls=2)
    assert watch.look() == {}
    for images, targets in batches:
        model(images, copy.deepcopy(targets))
    classes, _ = calls(batches)
    regions = watch.look()
    expected = diagnose(GHMC(30, 0.0), *classes[-1], bins=30)
    assert regions["classes"]["gradient"] == pytest.approx(expected.gradient_share.tolist())
    assert regions["classes"]["weights"] == pytest.approx(expected.weights.tolist())
    assert sum(regions["boxes"]["examples"]) == pytest.approx(1)
    metrics = scalars(regions)
    assert metrics["train/cls_gradient_evenness"] == pytest.approx(float(expected.evenness))
    assert metrics["train/box_gradient_hardest"] == regions["boxes"]["gradient"][-1]
    assert watch.look() == {}  # once an epoch
    model.eval()(batches[0][0])
    assert watch.look() == {}


def test_harmonizing_makes_the_gradient_more_even(batches):
    """The right of Figure 1."""
    model = detector(GHMC(), GHMR())
    with torch.no_grad():  # as if it had learned to tell boxes apart
        model.head.classification_head.cls_logits.weight.mul_(100)
    seen = collect(model, batches, torch.device("cpu"), bins=10, mu=0.5)
    assert seen.classes["GHM-C"].evenness > seen.classes["CE"].evenness
    assert seen.boxes["GHM-R"].evenness > seen.boxes["ASL1"].evenness
