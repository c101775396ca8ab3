"""Faster R-CNN with injected losses against torchvision's own, and what crowds and sigmoid losses change in it."""

import importlib
import math
from collections import OrderedDict
from functools import partial
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghm.data import coco_folder
from ghm.losses import ASL1, GHMC, GHMR, OHEM, CrossEntropy, FocalLoss, SmoothL1, SoftmaxCrossEntropy, SoftmaxGHMC
from ghm.models import FasterRCNN, faster_rcnn, faster_rcnn_tiny, stock_faster_rcnn, stock_mask_rcnn
from ghm.models.faster_rcnn import StockFasterRCNN, StockMaskRCNN
from ghm.models.transform import InputTransform
from tests.models.scenes import Recorder, batch, total
from tests.shared import shared

CLASSES = 3
PARTS = {"loss_cls", "loss_box", "ce", "loss_objectness", "loss_rpn_box_reg"}


class Pyramid(nn.Module):
    """Five levels of a single layer, as the box head wants them, in next to no time."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, self.out_channels, 4, 4)

    def forward(self, images):
        maps = [self.stem(images)]
        while len(maps) < 5:
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))


def build(cls_loss=None, box_loss=None, prior=None, transform=None):
    torch.manual_seed(0)
    losses = Recorder(cls_loss or CrossEntropy()), Recorder(box_loss or SmoothL1())
    return FasterRCNN(Pyramid(), CLASSES, *losses, prior, transform or InputTransform(None, 320))


class Exclusive(Recorder):
    """One that keeps what a softmax over classes and background is called with."""

    exclusive = True


def softmax(box_loss=None, transform=None):
    torch.manual_seed(0)
    losses = Exclusive(SoftmaxCrossEntropy()), Recorder(box_loss or SmoothL1())
    return FasterRCNN(Pyramid(), CLASSES, *losses, None, transform or InputTransform(None, 320))


def torchvisions(model=None, **options):
    """torchvision's own, with the weights of `model`."""
    from torchvision.models.detection import FasterRCNN as Theirs

    torch.manual_seed(0)
    theirs = Theirs(Pyramid(), 1 + CLASSES, **options)
    theirs.transform = InputTransform(None, 320)
    if model is not None:
        theirs.load_state_dict(model.state_dict())
    return theirs


def seeded(model, *arguments):
    torch.manual_seed(5)
    return model(*arguments)


def from_one(targets):
    return [{**target, "labels": target["labels"] + 1} for target in targets]


def calls(model):
    """What both losses were called with in the only step."""
    [classes], [boxes] = model.roi_heads.cls_loss.calls, model.roi_heads.box_loss.calls
    return classes, boxes


def few(model):
    """Fewer boxes an image than 512 in training and 100 in evaluation: the heads' time is theirs."""
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    model.roi_heads.detections_per_img = 15
    return model


def livened(model):
    """With offsets and logits that differ, as after training."""
    generator = torch.Generator().manual_seed(6)
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for layer, scale in ((predictor.cls_score, 1.0), (predictor.bbox_pred, 3.0)):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale)
    return model


# What the losses are given


def test_training_is_torchvisions_with_its_losses_injected():
    """The same proposals are sampled; classes, offsets and their targets are those that its losses get."""
    ours, (images, targets) = (
        softmax(box_loss=SmoothL1(weight=4.0)),
        batch((2, 0, 3)),
    )
    theirs = torchvisions(ours)
    expected = seeded(theirs.train(), images, from_one(targets))
    found = seeded(ours.train(), images, targets)
    assert found.keys() == PARTS
    (logits, labels, _), (offsets, _, _) = calls(ours)
    assert logits.shape == (len(labels), 1 + CLASSES)
    assert set(labels.tolist()) == {0, *(1 + torch.cat([target["labels"] for target in targets])).tolist()}
    assert len(offsets) == (labels > 0).sum() >= 5
    # The four coordinates of the positives are summed, and divided by all that was sampled (Table 7).
    assert expected["loss_box_reg"] > 0
    torch.testing.assert_close(found["loss_box"], expected["loss_box_reg"])
    torch.testing.assert_close(found["loss_cls"], expected["loss_classifier"])
    torch.testing.assert_close(found["ce"], expected["loss_classifier"].detach())
    assert not found["ce"].requires_grad
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        torch.testing.assert_close(found[name], expected[name])


def test_its_settings_are_torchvisions():
    def plain(module):
        """Its numbers, and those of what it uses."""
        return {
            name: plain(value) if type(value).__module__.startswith("torchvision") else value
            for name, value in vars(module).items()
            if not name.startswith(("_modules", "_parameters", "_buffers", "cls_loss", "box_loss", "exclusive"))
            and not isinstance(value, FunctionType)
        }

    for part in ("rpn", "roi_heads"):
        assert plain(getattr(build(), part)) == plain(getattr(torchvisions(), part))
        assert plain(getattr(build(), part))


def test_sigmoid_losses_get_the_classes_alone_background_as_zeros():
    exclusive, alone = softmax(), build(CrossEntropy(weight=20.0))
    alone.load_state_dict(exclusive.state_dict())
    for model in (exclusive, alone):
        losses = seeded(model.train(), *batch((2, 0, 3)))
    (logits, labels, _), (offsets, wanted, _) = calls(exclusive)
    (scores, one_hot, valid), (same_offsets, same_wanted, _) = calls(alone)
    assert torch.equal(scores, logits[:, 1:])
    assert one_hot.dtype == torch.bool
    assert one_hot.tolist() == [[label == each for each in range(1, 1 + CLASSES)] for label in labels.tolist()]
    assert not one_hot.any(dim=1).all()
    assert valid is None
    assert torch.equal(offsets, same_offsets)
    assert torch.equal(wanted, same_wanted)
    torch.testing.assert_close(losses["ce"], F.binary_cross_entropy_with_logits(scores, one_hot.float()).detach())
    assert not losses["ce"].requires_grad
    torch.testing.assert_close(losses["loss_cls"], 20 * losses["ce"])


def test_offsets_lead_from_a_positive_to_its_box():
    model, (images, targets) = softmax(), batch((1,))
    pooled = []
    model.roi_heads.box_roi_pool.register_forward_hook(lambda module, given, output: pooled.append(given[1]))
    model.train()(images, targets)
    (_, labels, _), (_, wanted, _) = calls(model)
    [[proposals]] = pooled
    own, box = proposals[labels > 0], targets[0]["boxes"]
    side, own_side = box[:, 2:] - box[:, :2], own[:, 2:] - own[:, :2]
    shift = ((box[:, :2] + box[:, 2:]) / 2 - (own[:, :2] + own[:, 2:]) / 2) / own_side
    expected = torch.cat([shift * 10, (side / own_side).log() * 5], dim=1)
    torch.testing.assert_close(wanted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "cls_loss", [SoftmaxCrossEntropy, SoftmaxGHMC, CrossEntropy, FocalLoss, OHEM, GHMC, partial(GHMC, density="exact")]
)
@pytest.mark.parametrize("numbers", [(2, 0, 1), (0,)])
def test_every_loss_trains_with_boxes_and_without(cls_loss, numbers):
    torch.manual_seed(0)
    model = FasterRCNN(Pyramid(), CLASSES, cls_loss(), GHMR(), 0.3, InputTransform(None, 320)).train()
    losses = model(*batch(numbers))
    total(losses).backward()
    assert losses.keys() == PARTS
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert losses["loss_cls"] > 0
    predictor = model.roi_heads.box_predictor
    assert (losses["loss_box"] > 0) == predictor.bbox_pred.weight.grad.any() == (sum(numbers) > 0)


@pytest.mark.parametrize("loss", [GHMR, ASL1, SmoothL1])
def test_without_positives_boxes_teach_nothing(loss):
    model = softmax(box_loss=loss()).train()
    losses = model(*batch((0, 0)))
    total(losses).backward()
    _, (offsets, wanted, _) = calls(model)
    assert offsets.shape == wanted.shape == (0, 4)
    assert losses["loss_box"].item() == 0
    gradient = model.roi_heads.box_predictor.bbox_pred.weight.grad
    assert gradient.eq(0).all()  # there, for DistributedDataParallel, and nothing


def test_the_state_of_the_losses_is_the_models():
    model = FasterRCNN(Pyramid(), CLASSES, GHMC(), GHMR(), 0.01, InputTransform(None, 320)).train()
    names = {f"roi_heads.{part}_loss.densities.0.average.counts" for part in ("cls", "box")}
    assert names <= model.state_dict().keys()
    before = {name: model.state_dict()[name].clone() for name in names}
    model(*batch())
    assert all(not torch.equal(model.state_dict()[name], before[name]) for name in names)


@pytest.mark.parametrize("prior", [0.01, 0.3, None])
def test_the_prior_is_what_a_sigmoid_loss_starts_from(prior):
    bias = build(CrossEntropy(), prior=prior).roi_heads.box_predictor.cls_score.bias
    assert bias.sigmoid().tolist() == pytest.approx([prior or 0.5] * (1 + CLASSES))


def test_a_softmax_starts_as_torchvisions_does():
    torch.testing.assert_close(dict(softmax().state_dict()), dict(torchvisions().state_dict()))


@pytest.mark.parametrize(
    ("cls_loss", "box_loss", "prior", "said"),
    [
        (None, None, None, "loss: this model brings none of its own; choose another than loss=stock"),
        (CrossEntropy(), None, None, "loss: this model brings none of its own; choose another than loss=stock"),
        (CrossEntropy(), ASL1(), 1.0, r"loss.prior=1.0: must lie in \(0, 1\); null starts without a bias"),
        (
            CrossEntropy(scope="level"),
            ASL1(),
            None,
            "loss.cls.scope=level: boxes have no pyramid level here; set it to pooled",
        ),
        (GHMC(), GHMR(scope="level"), 0.1, "loss.box.scope=level: boxes have no pyramid level here; set it to pooled"),
    ],
)
def test_what_it_cannot_train_with_is_named(cls_loss, box_loss, prior, said):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{said}$"):
        faster_rcnn("resnet50", CLASSES, cls_loss, box_loss, prior)


# Crowds


def test_background_in_crowds_is_not_sampled_but_what_finds_an_object_is():
    heads = build().roi_heads
    proposals = torch.tensor(
        [
            [0.0, 0, 20, 20],  # in the crowd
            [31, 0, 51, 20],  # 9 of its 20 columns are
            [29, 0, 49, 20],  # 11 of them
            [60, 60, 80, 80],  # background
            [10, 10, 30, 31],  # as good as the true box, in the crowd
        ]
    )
    box = torch.tensor([[10.0, 10, 30, 30]])
    target = {"boxes": box, "labels": torch.tensor([2]), "crowds": torch.tensor([[0.0, 0, 40, 40], [200, 0, 210, 9]])}
    other = {"boxes": box[:0], "labels": torch.tensor([], dtype=torch.int64), "crowds": box[:0]}
    without = {"boxes": box, "labels": torch.tensor([2])}
    kept, _, labels, _ = heads.select_training_samples([proposals] * 3, [target, other, without])
    assert kept[0].tolist() == [*proposals[[1, 3, 4]].tolist(), *box.tolist()]
    assert labels[0].tolist() == [0, 0, 2, 2]
    assert kept[1].tolist() == proposals.tolist()
    assert kept[2].tolist() == [*proposals.tolist(), *box.tolist()]
    assert labels[2].tolist() == [0, 0, 0, 0, 2, 2]


def test_anchors_in_crowds_teach_the_proposals_nothing():
    proposals = build().rpn
    anchors = torch.tensor([[0.0, 0, 20, 20], [31, 0, 51, 20], [29, 0, 49, 20], [10, 10, 30, 31], [12, 12, 34, 34]])
    target = {"boxes": torch.tensor([[10.0, 10, 30, 30]]), "crowds": torch.tensor([[0.0, 0, 40, 40]])}
    plain = {"boxes": target["boxes"]}
    alone = {"boxes": target["boxes"][:0], "crowds": target["crowds"]}
    labels, boxes = proposals.assign_targets_to_anchors([anchors] * 3, [target, plain, alone])
    assert [label.tolist() for label in labels] == [[-1, 0, -1, 1, -1], [0, 0, 0, 1, -1], [-1, 0, -1, -1, -1]]
    assert torch.equal(boxes[0], boxes[1])


@pytest.mark.parametrize("make", [build, softmax])
def test_crowds_are_scaled_with_their_image(make):
    """A crowd over all of the image leaves no background; unscaled it would cover a quarter."""
    model, (images, targets) = make(transform=InputTransform(128, 320)), batch((2, 1))
    for target in targets:
        target["crowds"] = torch.tensor([[0.0, 0, 64, 64]])
    losses = model.train()(images, targets)
    (_, labels, _), (offsets, _, _) = calls(model)
    positive = labels.any(dim=1) if labels.dim() == 2 else labels > 0
    assert positive.all()
    assert len(offsets) == len(positive) >= 3
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("make", [partial(build, GHMC(), GHMR()), softmax])
def test_images_of_which_nothing_is_left_to_sample_train(make):
    model, (images, targets) = make().train(), batch((0, 0))
    for target in targets:
        target["crowds"] = torch.tensor([[0.0, 0, 64, 64]])
    losses = model(images, targets)
    total(losses).backward()
    (logits, _, _), _ = calls(model)
    assert len(logits) == 0
    assert losses["ce"] == losses["loss_cls"] == losses["loss_box"] == 0
    assert losses["loss_objectness"] > 0  # anchors that jut out of the image
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# What comes out


def test_softmax_evaluation_is_torchvisions():
    ours = livened(softmax())
    theirs = torchvisions(ours)
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 90)]
    with torch.no_grad():
        found, expected = ours.eval()(images), theirs.eval()(images)
    for one, other in zip(found, expected, strict=True):
        assert len(one["scores"]) > 10
        assert torch.equal(one["labels"], other["labels"] - 1)
        assert set(one["labels"].tolist()) == {0, 1, 2}
        torch.testing.assert_close([one["boxes"], one["scores"]], [other["boxes"], other["scores"]])


def naive(logits, offsets, proposals, shape):
    """Detections of an image, one by one: (score, class, box), best first."""
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import nms

    height, width = shape
    detections = []
    for label in range(CLASSES):
        boxes = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(offsets[:, 4 * label + 4 : 4 * label + 8], proposals)
        boxes = torch.stack([boxes[:, side].clamp(0, (width, height)[side % 2]) for side in range(4)], dim=1)
        scores = 1 / (1 + (-logits[:, 1 + label]).exp())
        kept = (scores > 0.05) & (boxes[:, 2] - boxes[:, 0] >= 0.01) & (boxes[:, 3] - boxes[:, 1] >= 0.01)
        boxes, scores = boxes[kept], scores[kept]
        detections += [(scores[i].item(), label, boxes[i].tolist()) for i in nms(boxes, scores, 0.5)]
    return sorted(detections, reverse=True)[:100]


@pytest.mark.parametrize("crowded", [False, True])
def test_sigmoid_evaluation_takes_each_class_by_itself(crowded):
    """Scores are sigmoids, boxes lie in the image and have an area, suppression is per class, 100 at most remain."""
    heads, generator = build(CrossEntropy()).roi_heads.eval(), torch.Generator().manual_seed(0)
    proposals, shapes = [], [(60, 80), (70, 50)]
    for number in (400, 300) if crowded else (7, 5):
        corner = torch.rand(number, 2, generator=generator) * 60
        proposals.append(torch.cat([corner, corner + 3 + torch.rand(number, 2, generator=generator) * 30], dim=1))
    rows = sum(map(len, proposals))
    logits = torch.randn(rows, 1 + CLASSES, generator=generator) * 3
    offsets = torch.randn(rows, 4 * (1 + CLASSES), generator=generator) * 4
    offsets[0, 4] = -1000.0  # left of the image
    logits[0, 1] = 9.0
    found = heads.postprocess_detections(logits, offsets, proposals, shapes)
    start = 0
    for boxes, scores, labels, own, shape in zip(*found, proposals, shapes, strict=True):
        part = slice(start, start + len(own))
        expected = naive(logits[part], offsets[part], own, shape)
        assert scores.tolist() == pytest.approx([score for score, _, _ in expected])
        assert labels.tolist() == [1 + label for _, label, _ in expected]
        torch.testing.assert_close(boxes, torch.tensor([box for _, _, box in expected]), rtol=1e-4, atol=1e-3)
        assert (len(scores) == 100) == crowded
        start += len(own)


@pytest.mark.parametrize("make", [partial(build, CrossEntropy()), softmax])
def test_evaluation_gives_boxes_of_the_classes_in_the_images_own_pixels(make):
    model = livened(make(transform=InputTransform(100, 320))).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 90)]
    with torch.no_grad():
        outputs = model(images)
    for image, output in zip(images, outputs, strict=True):
        height, width = image.shape[-2:]
        assert 10 < len(output["scores"]) <= 100
        assert set(output["labels"].tolist()) == {0, 1, 2}
        assert output["boxes"].min() >= 0
        assert output["boxes"][:, 0::2].max() == pytest.approx(width)
        assert output["boxes"][:, 1::2].max() == pytest.approx(height)
    assert model.roi_heads.cls_loss.calls == []
    assert torch.equal(model(images, batch((1, 1))[1])[0]["labels"], outputs[0]["labels"])  # targets change nothing


@pytest.mark.parametrize("make", [partial(build, CrossEntropy()), softmax])
def test_a_diverged_model_detects_nothing(make):
    """Proposals that are no numbers are dropped: none is left."""
    model = make().eval()
    nn.init.constant_(model.rpn.head.bbox_pred.bias, math.nan)
    for output in model([torch.rand(3, 64, 64)] * 2):
        assert output["boxes"].shape == (0, 4)
        assert output["scores"].shape == output["labels"].shape == (0,)


# torchvision's own


def stock_batch():
    images, targets = batch((2, 1))
    for target in targets:
        boxes = target["boxes"].round().int()
        target["masks"] = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(target["masks"], boxes.tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
    return images, targets


@pytest.fixture
def tiny_stock(monkeypatch):
    """Stock models, by name, on a pyramid that costs nothing; and what they ask of the real one."""
    asked = []
    module = importlib.import_module("ghm.models.faster_rcnn")  # ghm.models.faster_rcnn is the function
    monkeypatch.setattr(module, "resnet_fpn", lambda *given: asked.append(given) or Pyramid())

    def make(name, **options):
        torch.manual_seed(0)
        function = {"faster": stock_faster_rcnn, "mask": stock_mask_rcnn}[name]
        return function("resnet101", CLASSES, cls_loss=None, box_loss=None, prior=None, weights="w", **options)

    make.asked = asked
    return make


@pytest.mark.parametrize(("name", "extra"), [("faster", set()), ("mask", {"loss_mask"})])
def test_stock_models_are_torchvisions_with_labels_from_zero(tiny_stock, name, extra):
    from torchvision.models import detection

    ours = few(tiny_stock(name, min_size=96, max_size=200))
    torch.manual_seed(0)
    kind = {"faster": detection.FasterRCNN, "mask": detection.MaskRCNN}[name]
    theirs = few(kind(Pyramid(), 1 + CLASSES, min_size=96, max_size=200))
    assert tiny_stock.asked == [("resnet101", "w", "P2-P6", "frozen")]
    assert isinstance(ours, {"faster": StockFasterRCNN, "mask": StockMaskRCNN}[name])
    assert getattr(ours, "needs_masks", False) == (name == "mask")
    images, targets = stock_batch()
    expected = seeded(theirs.train(), images, from_one(targets))
    found = seeded(ours.train(), images, targets)
    assert found.keys() == PARTS | extra
    other = {"loss_cls": "loss_classifier", "loss_box": "loss_box_reg", "ce": "loss_classifier"}
    for part, value in found.items():
        assert torch.equal(value, expected[other.get(part, part)])
    assert not found["ce"].requires_grad
    assert targets[0]["labels"].max() < CLASSES  # the loader's own stay as they are
    livened(ours), livened(theirs)
    with torch.no_grad():
        for one, another in zip(ours.eval()(images), theirs.eval()(images), strict=True):
            assert len(one["scores"]) > 10
            assert torch.equal(one.pop("labels"), another.pop("labels") - 1)
            assert one.keys() == {"boxes", "scores"} | ({"masks"} if name == "mask" else set())
            torch.testing.assert_close(one, another)


@pytest.mark.parametrize("name", ["faster", "mask"])
def test_stock_models_train_without_boxes(tiny_stock, name):
    model, (images, targets) = few(tiny_stock(name, min_size=64)).train(), batch((0, 0))
    for target in targets:
        target["masks"] = torch.zeros(0, 64, 64, dtype=torch.uint8)
    losses = model(images, targets)
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("make", [stock_faster_rcnn, stock_mask_rcnn])
@pytest.mark.parametrize("losses", [(GHMC(), None), (None, GHMR()), (GHMC(), GHMR())])
def test_stock_models_refuse_losses(make, losses):
    said = "^loss: this model trains with torchvision's own losses; add loss=stock$"
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        make("resnet50", CLASSES, cls_loss=losses[0], box_loss=losses[1], prior=None)


# Table 7's network


def test_every_parameter_of_table_7s_network_learns():
    torch.manual_seed(0)
    model = faster_rcnn("resnet50", CLASSES, SoftmaxCrossEntropy(), GHMR(), None, min_size=[64], max_size=96)
    assert (model.transform.min_size, model.transform.max_size) == ([64], 96)
    losses = few(model).train()(*batch((2, 0)))
    total(losses).backward()
    assert losses.keys() == PARTS
    assert all(value.isfinite() for value in losses.values())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_it_learns_from_coco():
    data = coco_folder(str(shared("coco_mini"))).train
    chosen = [index for index in range(len(data)) if data.coco.imgToAnns[data.image_ids[index]]][:6]
    torch.manual_seed(0)
    losses = SoftmaxCrossEntropy(), GHMR(weight=4.0)
    model = few(faster_rcnn("resnet50", 80, *losses, None, min_size=160, max_size=224)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for step in range(3):
        images, targets = zip(*(data[index] for index in chosen[2 * step : 2 * step + 2]), strict=True)
        parts = model(list(images), list(targets))
        assert parts["loss_box"] > 0
        total(parts).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert model.roi_heads.box_loss.density.average.counts.sum() > 0


def test_what_is_returned_is_chosen_by_its_settings():
    settings = {"score_thresh": 0.2, "nms_thresh": 0.4, "detections_per_img": 7}
    with torch.device("meta"):
        ours = faster_rcnn("resnet50", CLASSES, CrossEntropy(), SmoothL1(), None, **settings)
        stock = stock_faster_rcnn("resnet50", CLASSES, cls_loss=None, box_loss=None, prior=None, **settings)
    for heads in (ours.roi_heads, stock.roi_heads):
        assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.2, 0.4, 7)


def test_the_tiny_one_trains_and_finds_boxes():
    torch.manual_seed(0)
    model = faster_rcnn_tiny(CLASSES, SoftmaxCrossEntropy(), GHMR(normalize="all"), None)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1e6
    losses = model.train()(*batch((2, 0, 3)))
    assert losses.keys() == PARTS
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    found = few(model).eval()(batch((1,))[0])
    assert len(found[0]["boxes"]) <= 15
