"""RetinaNet with injected losses: what it gives to them, and what it gives back."""

import math
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist

from ghm.losses import ASL1, GHMC, GHMR, OHEM, CrossEntropy, SoftmaxCrossEntropy, SoftmaxGHMC
from ghm.models import RetinaNet, retinanet, retinanet_tiny
from tests.models.scenes import Recorder, batch, total

CLASSES = 3


def build(prior=0.01, seed=0):
    torch.manual_seed(seed)
    return retinanet_tiny(CLASSES, Recorder(CrossEntropy()), Recorder(ASL1()), prior)


def anchors_of(model, images, targets):
    """The anchors of each image in the step that is run here."""
    seen = []
    handle = model.anchor_generator.register_forward_hook(lambda module, arguments, output: seen.append(output))
    losses = model.train()(images, targets)
    handle.remove()
    return losses, seen[0]


def iou(a, b):
    """(len(a), len(b)), by the definition."""
    corner = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    inter = corner.clamp(min=0).prod(dim=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(dim=1) for x in (a, b))
    return inter / (area_a[:, None] + area_b - inter)


# What the losses are given


def test_each_loss_is_called_once_with_the_anchors_of_all_images():
    model = build()
    images, targets = batch()
    losses, anchors = anchors_of(model, images, targets)
    [(logits, one_hot, valid)] = model.head.classification_head.loss.calls
    [(offsets, wanted, _)] = model.head.regression_head.loss.calls
    assert len(anchors) == len(images)
    total = sum(len(a) for a in anchors)
    assert logits.shape == one_hot.shape == (total, CLASSES)
    assert valid.shape == (total,)
    positives = one_hot.sum(dim=1)
    assert set(positives.tolist()) <= {0, 1}
    assert offsets.shape == wanted.shape == (int(positives.sum()), 4)
    assert set(losses) == {"loss_cls", "loss_box", "ce"}


def test_anchors_are_matched_and_ignored_by_their_overlap():
    model = build()
    images, targets = batch()
    _, anchors = anchors_of(model, images, targets)
    [(_, one_hot, valid)] = model.head.classification_head.loss.calls
    one_hot, valid = one_hot.view(len(images), -1, CLASSES), valid.view(len(images), -1)
    between = 0
    for own, target, hot, counts in zip(anchors, targets, one_hot, valid, strict=True):
        if not len(target["boxes"]):
            assert counts.all()  # nothing to be in between of: all is background
            assert not hot.any()
            continue
        overlap = iou(target["boxes"], own)
        best, box = overlap.max(dim=0)
        # Whatever its overlap, the anchor nearest to a box is that box's own best chance.
        positive = (best >= 0.5) | (overlap == overlap.max(dim=1, keepdim=True).values).any(dim=0)
        ignored = (best >= 0.4) & ~positive
        between += int(ignored.sum())
        assert torch.equal(counts, ~ignored)
        assert torch.equal(hot.any(dim=1), positive)
        assert torch.equal(hot[positive].long().argmax(dim=1), target["labels"][box[positive]])
    assert between > 0


def test_box_offsets_lead_from_the_anchor_to_its_box():
    model = build()
    images, targets = batch()
    _, anchors = anchors_of(model, images, targets)
    [(_, one_hot, _)] = model.head.classification_head.loss.calls
    [(_, wanted, _)] = model.head.regression_head.loss.calls
    positive = one_hot.view(len(images), -1, CLASSES).any(dim=2)
    boxes, own = [], []
    for anchor, target, chosen in zip(anchors, targets, positive, strict=True):
        if chosen.any():
            boxes.append(target["boxes"][iou(target["boxes"], anchor).argmax(dim=0)[chosen]])
            own.append(anchor[chosen])
    boxes, own = torch.cat(boxes), torch.cat(own)
    side, own_side = boxes[:, 2:] - boxes[:, :2], own[:, 2:] - own[:, :2]
    shift = ((boxes[:, :2] + boxes[:, 2:]) / 2 - (own[:, :2] + own[:, 2:]) / 2) / own_side
    torch.testing.assert_close(wanted, torch.cat([shift, (side / own_side).log()], dim=1), rtol=1e-4, atol=1e-4)


def test_the_head_marks_classes_and_leaves_out_what_lies_between_thresholds():
    model = build()
    # Two images of four anchors: -1 is background, -2 between the thresholds, else the box.
    matched = torch.tensor([[-1, 1, -2, 0], [-2, -2, -1, -1]])
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20]]), "labels": torch.tensor([2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    outputs = {
        "cls_logits": torch.arange(24.0).view(2, 4, CLASSES),
        "bbox_regression": torch.arange(32.0).view(2, 4, 4),
    }
    anchors = [torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)] * 2
    model.head.compute_loss(targets, outputs, anchors, matched)
    [(logits, one_hot, valid)] = model.head.classification_head.loss.calls
    [(offsets, _, _)] = model.head.regression_head.loss.calls
    assert torch.equal(logits, torch.arange(24.0).view(8, CLASSES))
    assert one_hot.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], *[[0, 0, 0]] * 4]
    assert valid.tolist() == [True, True, False, True, False, False, True, True]
    assert offsets.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]


@pytest.mark.parametrize("padding", [True, False])
def test_anchors_on_padding_are_background_or_left_out(padding):
    """Of a small image beside a large one, as torchvision has it and as mmdetection has it."""
    torch.manual_seed(0)
    model = retinanet_tiny(CLASSES, Recorder(CrossEntropy()), Recorder(ASL1()), 0.01, train_padding=padding)
    (one, other), targets = batch((2, 1))
    large = torch.nn.functional.pad(other, (0, 64, 0, 64))
    _, anchors = anchors_of(model, [one, large], targets)
    [(_, one_hot, valid)] = model.head.classification_head.loss.calls
    centre = (anchors[0][:, :2] + anchors[0][:, 2:]) / 2
    beyond = (centre >= 64).any(dim=1)
    assert beyond.any()
    small, large = valid.view(2, -1)
    assert large[beyond].any()
    assert bool(small[beyond].any()) == padding
    assert not one_hot.view(2, len(centre), -1)[0, beyond].any()


def test_the_numbers_around_the_losses_are_settings():
    given = {"score_thresh": 0.1, "nms_thresh": 0.6, "detections_per_img": 5, "topk_candidates": 50}
    matching = {"fg_iou_thresh": 0.6, "bg_iou_thresh": 0.3}
    own = {"anchor_sizes": [10, 20, 40], "anchor_scales": [1.0, 2.0], "aspect_ratios": [1.0]}
    model = retinanet_tiny(CLASSES, CrossEntropy(), ASL1(), None, **given, **matching, **own)
    assert {key: getattr(model, key) for key in given} == given
    rule = model.proposal_matcher
    assert (rule.high_threshold, rule.low_threshold) == (0.6, 0.3)
    sides = [(cell[:, 2:] - cell[:, :2]).tolist() for cell in model.anchor_generator.cell_anchors]
    assert sides == [[[10, 10], [20, 20]], [[20, 20], [40, 40]], [[40, 40], [80, 80]]]
    assert model.train()(*batch())["loss_box"].isfinite()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score_thresh": 1.5}, "score_thresh=1.5: must lie in [0, 1]"),
        ({"nms_thresh": "x"}, "nms_thresh=x: must lie in [0, 1]"),
        ({"detections_per_img": 0}, "detections_per_img=0: must be a whole number of 1 or more"),
        ({"topk_candidates": 1.5}, "topk_candidates=1.5: must be a whole number of 1 or more"),
        ({"bg_iou_thresh": 0.7}, "bg_iou_thresh=0.7: must not be above fg_iou_thresh=0.5"),
        ({"anchor_scales": []}, "anchor_scales=[]: must be numbers above 0"),
        ({"anchor_sizes": [10, 20]}, "anchor_sizes=[10, 20]: must be one for each of the 3 pyramid levels"),
    ],
)
def test_numbers_that_make_no_detector_are_named(settings, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        retinanet_tiny(CLASSES, CrossEntropy(), ASL1(), None, **settings)


@pytest.mark.parametrize(("size", "max_size"), [(64, 320), (128, 64)])
def test_what_lies_in_crowds_is_left_out_however_the_image_is_scaled(size, max_size):
    torch.manual_seed(0)
    model = retinanet_tiny(CLASSES, Recorder(CrossEntropy()), Recorder(ASL1()), 0.01, max_size=max_size)
    images, targets = batch((2, 0, 1), size)
    _, anchors = anchors_of(model, images, targets)
    crowds = torch.tensor([[0.0, 0.1, 0.7, 0.9]])  # of the image's side
    for target, regions in zip(targets, (crowds, crowds, crowds[:0]), strict=True):
        target["crowds"] = regions * size
    model.train()(images, targets)
    [(_, before, plain), (_, after, valid)] = model.head.classification_head.loss.calls
    assert torch.equal(before, after)  # positives stay what they are
    own = anchors[0]
    x1, y1, x2, y2 = (crowds[0] * 64).tolist()  # images are of 64 pixels now
    wide = own[:, 2].clamp(max=x2) - own[:, 0].clamp(min=x1)
    high = own[:, 3].clamp(max=y2) - own[:, 1].clamp(min=y1)
    inside = (wide.clamp(min=0) * high.clamp(min=0) / (own[:, 2:] - own[:, :2]).prod(dim=1)) > 0.5
    left_out = torch.cat([inside, inside, torch.zeros_like(inside)]) & ~before.any(dim=1)
    assert torch.equal(valid, plain & ~left_out)
    assert (left_out & plain).sum() > 50
    [(offsets, _, _), (crowded, _, _)] = model.head.regression_head.loss.calls
    assert torch.equal(offsets, crowded)


def test_images_of_crowds_alone_train():
    model = retinanet_tiny(CLASSES, GHMC(), GHMR(), 0.01).train()
    images, targets = batch((0, 0))
    for target in targets:
        target["crowds"] = torch.tensor([[0.0, 0, 64, 64]])
    losses = model(images, targets)
    total(losses).backward()
    assert losses["loss_box"].item() == 0
    assert losses["loss_cls"].item() > 0  # what juts out of the image
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_ce_is_nothing_where_nothing_counts():
    head = build().head.classification_head
    targets = batch((1,))[1]
    losses = head.compute_loss(targets, {"cls_logits": torch.rand(1, 4, CLASSES)}, [], torch.full((1, 4), -2))
    assert losses["ce"].item() == 0


def test_ce_is_the_plain_mean_over_what_counts_and_teaches_nothing():
    model = retinanet_tiny(CLASSES, Recorder(GHMC(bins=10, weight=5.0)), Recorder(GHMR()), 0.01)
    losses = model.train()(*batch())
    [(logits, one_hot, valid)] = model.head.classification_head.loss.calls
    torch.testing.assert_close(losses["ce"], CrossEntropy()(logits, one_hot, valid).detach())
    assert not losses["ce"].requires_grad
    assert losses["loss_cls"].requires_grad
    assert losses["loss_box"].requires_grad


def test_splitting_hairs_between_images_does_not_change_the_density():
    # One histogram a step: two images together differ from the mean of each alone.
    images, targets = batch((2, 1))
    torch.manual_seed(0)
    model = retinanet_tiny(CLASSES, GHMC(bins=10, momentum=0.0), ASL1(), 0.3).train()
    both = model(images, targets)["loss_cls"]
    alone = [model([image], [target])["loss_cls"] for image, target in zip(images, targets, strict=True)]
    assert not torch.isclose(both, sum(alone) / 2, rtol=1e-4)
    torch.testing.assert_close(model(images[::-1], targets[::-1])["loss_cls"], both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers", [(0,), (0, 0)])
def test_images_without_boxes_train(numbers):
    model = retinanet_tiny(CLASSES, GHMC(), GHMR(), 0.01).train()
    losses = model(*batch(numbers))
    total(losses).backward()
    assert losses["loss_box"].item() == 0
    assert losses["loss_cls"].item() > 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_every_parameter_learns():
    model = retinanet_tiny(CLASSES, GHMC(), GHMR(), 0.01).train()
    losses = model(*batch())
    total(losses).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_state_of_the_losses_is_the_models():
    names = set(retinanet_tiny(CLASSES, GHMC(), GHMR(), 0.01).state_dict())
    heads = ("classification_head", "regression_head")
    state = ("average.counts", "average.updates")
    assert {f"head.{head}.loss.densities.0.{name}" for head in heads for name in state} <= names


class LevelRecorder(Recorder):
    """A loss that wants to know the levels."""

    scope = "level"

    def forward(self, input, target, valid=None, level_sizes=None):
        self.level_sizes = level_sizes
        return super().forward(input, target, valid)


def test_a_loss_with_a_scope_gets_its_rows_level_after_level():
    pooled = build()
    torch.manual_seed(0)
    levels = retinanet_tiny(CLASSES, LevelRecorder(CrossEntropy()), LevelRecorder(ASL1()), 0.01)
    images, targets = batch(numbers=(3, 0, 4))
    expected, anchors = anchors_of(pooled, images, targets)
    losses = levels.train()(images, targets)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)  # these losses do not care for order
    # Three levels of strides 8, 16 and 32 (see TinyFPN), nine anchors a place.
    per_level = [9 * (64 // stride) ** 2 for stride in (8, 16, 32)]
    level = torch.repeat_interleave(torch.arange(3), torch.tensor(per_level)).repeat(3)
    assert len(level) == sum(map(len, anchors))
    head = levels.head.classification_head.loss
    assert head.level_sizes == [3 * size for size in per_level]
    logits, _, valid = pooled.head.classification_head.loss.calls[-1]
    order = level.argsort(stable=True)
    torch.testing.assert_close(head.calls[-1][0], logits[order])
    assert torch.equal(head.calls[-1][2], valid[order])
    # Boxes: as many rows of each level as that level has positive anchors.
    boxes, positive = levels.head.regression_head.loss, pooled.head.classification_head.loss.calls[-1][1].any(1)
    assert boxes.level_sizes == [int((positive & (level == number)).sum()) for number in range(3)]
    assert sorted(boxes.calls[-1][1].tolist()) == sorted(pooled.head.regression_head.loss.calls[-1][1].tolist())
    assert sum(size > 0 for size in boxes.level_sizes) > 1


@pytest.mark.parametrize("nms", [None, 0.7])
def test_hard_examples_are_mined_in_each_image(nms):
    torch.manual_seed(0)
    model = retinanet_tiny(CLASSES, OHEM(None, keep=16, nms=nms), ASL1(), 0.01).train()
    images, targets = batch((2, 0))
    outputs = []
    model.head.register_forward_hook(lambda module, given, output: outputs.append(output["cls_logits"]))
    loss = model(images, targets)["loss_cls"]
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert [int(image.ne(0).any(dim=1).sum()) for image in gradient] == [16, 16]


@pytest.mark.parametrize("scope", ["level", "shared"])
def test_losses_of_each_level_train_and_evaluate(scope):
    options = {"scope": scope, "levels": 3}
    model = retinanet_tiny(CLASSES, GHMC(**options), GHMR(**options), 0.01).train()
    for _ in range(2):
        losses = model(*batch())
        total(losses).backward()
    assert losses["loss_cls"].isfinite()
    assert len(model.eval()(batch()[0])) == 3


# Several processes


def step(rank, world):
    """Values and gradient of what a rank has of four images, in double precision: no example changes its region."""
    torch.manual_seed(0)
    model = retinanet_tiny(CLASSES, GHMC(bins=10), GHMR(), 0.3).double().train()
    images, targets = batch((2, 0, 1, 3))
    targets[0]["crowds"] = torch.tensor([[0.0, 0, 60, 60]])
    targets = [{name: v.double() if v.is_floating_point() else v for name, v in target.items()} for target in targets]
    own = slice(rank * 4 // world, (rank + 1) * 4 // world)
    losses = model([image.double() for image in images[own]], targets[own])
    total(losses).backward()
    values = {name: value.detach() for name, value in losses.items()}
    return values, {name: parameter.grad for name, parameter in model.named_parameters()}


def on_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(step(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_half_a_batch_each_learn_what_one_learns_of_it_all(tmp_path):
    torch.multiprocessing.spawn(on_rank, (2, str(tmp_path)), nprocs=2)
    values, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    expected_values, expected_gradients = step(0, 1)
    for name, expected in expected_values.items():
        assert not torch.isclose(values[0][name], values[1][name])
        torch.testing.assert_close((values[0][name] + values[1][name]) / 2, expected)
    for name, expected in expected_gradients.items():
        torch.testing.assert_close((gradients[0][name] + gradients[1][name]) / 2, expected)


# What comes out


def test_evaluation_gives_boxes_scores_and_labels_in_the_images_own_pixels():
    model = build(prior=0.3).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 90)]
    with torch.no_grad():
        outputs = model(images)
    for image, output in zip(images, outputs, strict=True):
        assert set(output) == {"boxes", "scores", "labels"}
        number = len(output["scores"])
        assert 0 < number <= 100  # COCO scores no more
        assert output["boxes"].shape == (number, 4)
        assert output["boxes"].min() >= 0
        height, width = image.shape[-2:]
        assert output["boxes"][:, 0::2].max() <= width
        assert output["boxes"][:, 1::2].max() <= height
        assert output["labels"].dtype == torch.int64
        assert output["labels"].min() >= 0
        assert output["labels"].max() < CLASSES
        assert output["scores"].diff().le(0).all()
        assert output["scores"].max() <= 1
    assert model.head.classification_head.loss.calls == []


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
def test_the_prior_is_what_an_untrained_model_believes(prior):
    model = build(prior).train()
    assert model.head.classification_head.cls_logits.bias.sigmoid().tolist() == pytest.approx([prior] * 9 * CLASSES)
    model(*batch())
    [(logits, _, _)] = model.head.classification_head.loss.calls
    # In logits: the last layer's small weights move it a little.
    assert logits.mean().item() == pytest.approx(math.log(prior / (1 - prior)), abs=0.1)


def test_without_a_prior_there_is_no_bias():
    assert build(None).head.classification_head.cls_logits.bias.eq(0).all()


@pytest.mark.parametrize("make", [retinanet_tiny, partial(retinanet, "resnet50")])
@pytest.mark.parametrize(
    ("cls_loss", "box_loss", "said"),
    [
        (SoftmaxGHMC(), ASL1(), "loss.cls: is a softmax .*; choose another loss/cls, or model=faster_rcnn_r50"),
        (SoftmaxCrossEntropy(), ASL1(), "loss.cls: is a softmax .*; choose another loss/cls, or model=faster_rcnn_r50"),
        (None, None, "loss: this model brings none of its own; choose another than loss=stock"),
        (CrossEntropy(), None, "loss: this model brings none of its own; choose another than loss=stock"),
        (None, ASL1(), "loss: this model brings none of its own; choose another than loss=stock"),
    ],
)
def test_losses_that_it_cannot_train_with_are_refused(make, cls_loss, box_loss, said):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{said}$"):
        make(CLASSES, cls_loss, box_loss, None)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, "low", math.nan])
@pytest.mark.parametrize("make", [retinanet_tiny, partial(retinanet, "resnet50")])
def test_a_bad_prior_is_named_with_its_value(make, prior):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^loss.prior={prior}: must lie in"):
        make(CLASSES, CrossEntropy(), ASL1(), prior)


# The paper's network


@pytest.fixture(scope="module")
def r50():
    with torch.device("meta"):
        return retinanet("resnet50", 80, GHMC(), GHMR(), 0.01)


def test_the_papers_network_builds_without_memory(r50):
    assert isinstance(r50, RetinaNet)
    assert {parameter.device.type for parameter in r50.parameters()} == {"meta"}
    # mmdetection's has 37.7 million, its P6 made of C5 like here; GroupNorm adds no more than BatchNorm.
    assert sum(parameter.numel() for parameter in r50.parameters()) == pytest.approx(37.9e6, rel=0.005)
    assert all(parameter.requires_grad for parameter in r50.parameters())  # from nothing: nothing is frozen


def test_the_papers_network_has_nine_anchors_at_each_place_of_five_levels(r50):
    assert r50.anchor_generator.num_anchors_per_location() == [9] * 5
    assert [sizes[0] for sizes in r50.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert r50.head.classification_head.cls_logits.out_channels == 9 * 80
    assert (r50.transform.min_size, r50.transform.max_size) == ((800,), 1333)


def test_sizes_reach_the_images():
    tiny = retinanet_tiny(CLASSES, CrossEntropy(), ASL1(), 0.01, max_size=48)
    assert tiny.transform([torch.rand(3, 20, 96)])[0].image_sizes == [(10, 48)]
    assert tiny.transform([torch.rand(3, 20, 30)])[0].image_sizes == [(20, 30)]  # none is enlarged
    with torch.device("meta"):
        large = retinanet("resnet50", CLASSES, CrossEntropy(), ASL1(), 0.01, min_size=[40, 64], max_size=100)
    assert large.eval().transform([torch.rand(3, 20, 20)])[0].image_sizes == [(64, 64)]
    assert large.transform([torch.rand(3, 20, 40)])[0].image_sizes == [(50, 100)]
