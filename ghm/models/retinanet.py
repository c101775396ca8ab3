"""torchvision's RetinaNet with injected losses.

torchvision averages one loss per image. Gradient density is a statistic of the mini-batch, so these
heads join the anchors of all images first and call each loss once a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import retinanet as torchvision_retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ghm.models.backbones import Norm, ResNet, TinyFPN, group_norm, resnet_fpn
from ghm.models.matching import BACKGROUND, IGNORED, beyond, match, padded, unsuppressed
from ghm.models.rules import Rules, checked
from ghm.models.transform import InputTransform

Loss = Callable[..., Tensor]
Targets = list[dict[str, Tensor]]


class ClassificationHead(torchvision_retinanet.RetinaNetClassificationHead):
    """Class logits, and the injected loss over the anchors of the whole batch."""

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        loss: Loss,
        prior: float,
        norm_layer: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__(in_channels, num_anchors, num_classes, prior, norm_layer)
        self.loss = loss

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor], matched_idxs: Tensor
    ) -> dict[str, Tensor]:
        """`loss_cls`, and `ce`, the plain cross-entropy: a number that falls whatever the loss.

        `matched_idxs` (N, A), as `match` returns it.
        """
        logits, valid = head_outputs["cls_logits"], matched_idxs != IGNORED  # (N, A, C), (N, A)
        told: dict[str, Any] = {}
        labels = padded([target["labels"] for target in targets]).gather(1, matched_idxs.clamp(min=0))
        labels = labels.where(matched_idxs >= 0, BACKGROUND)
        if _knows_levels(self.loss):
            sizes = head_outputs["level_sizes"]
            logits, labels, valid = (_level_after_level(part, sizes) for part in (logits, labels, valid))
            told = {"level_sizes": [len(matched_idxs) * size for size in sizes]}
        else:
            logits, labels, valid = logits.flatten(0, 1), labels.flatten(), valid.flatten()
        if getattr(self.loss, "keep", None) is not None:  # hard examples of each image
            threshold, keep, ratio = (getattr(self.loss, name) for name in ("nms", "keep", "ratio"))
            enough = keep if ratio is None else None  # positives and negatives are chosen apart
            suppress = None if threshold is None else partial(unsuppressed, anchors[0], threshold, enough)
            told |= {"images": len(matched_idxs), "suppress": suppress}
        one_hot = labels[:, None] == torch.arange(self.num_classes, device=labels.device)
        with torch.no_grad():
            ce = F.binary_cross_entropy_with_logits(logits.float(), one_hot.float(), reduction="none").mean(1)
            ce = _mean(ce, valid)
        return {"loss_cls": self.loss(logits, one_hot, valid, **told), "ce": ce}


class RegressionHead(torchvision_retinanet.RetinaNetRegressionHead):
    """Box offsets, and the injected loss over the positive anchors of the whole batch."""

    def __init__(
        self, in_channels: int, num_anchors: int, loss: Loss, norm_layer: Callable[..., nn.Module] | None
    ) -> None:
        super().__init__(in_channels, num_anchors, norm_layer)
        self.loss = loss

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor], matched_idxs: Tensor
    ) -> dict[str, Tensor]:
        image, place = torch.where(matched_idxs >= 0)
        boxes = padded([target["boxes"] for target in targets])[image, matched_idxs[image, place]]
        x = head_outputs["bbox_regression"][image, place]
        y, by_level = self.box_coder.encode_single(boxes, anchors[0][place]), {}
        if _knows_levels(self.loss):
            ends = torch.tensor(head_outputs["level_sizes"], device=x.device).cumsum(0)
            level = torch.bucketize(place, ends, right=True)
            order = level.argsort(stable=True)
            x, y = x[order], y[order]
            by_level = {"level_sizes": torch.bincount(level, minlength=len(ends)).tolist()}
        return {"loss_box": self.loss(x, y, **by_level)}


class Head(torchvision_retinanet.RetinaNetHead):
    """Both heads; their losses carry the names under which they are reported."""

    def __init__(self, classification: ClassificationHead, regression: RegressionHead) -> None:
        nn.Module.__init__(self)  # torchvision's constructor would build heads of its own
        self.classification_head, self.regression_head = classification, regression

    def forward(self, x: list[Tensor]) -> dict[str, Any]:
        outputs = super().forward(x)
        if self.training:  # in evaluation torchvision splits every value as if it were a tensor
            places = [feature.shape[-2] * feature.shape[-1] for feature in x]
            outputs["level_sizes"] = [outputs["cls_logits"].shape[1] * place // sum(places) for place in places]
        return outputs

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor], matched_idxs: Tensor
    ) -> dict[str, Tensor]:
        return {
            **self.classification_head.compute_loss(targets, head_outputs, anchors, matched_idxs),
            **self.regression_head.compute_loss(targets, head_outputs, anchors, matched_idxs),
        }


class RetinaNet(torchvision_retinanet.RetinaNet):
    """In training: `(images, targets) -> {"loss_cls", "loss_box", "ce"}`, of which `loss_*` are summed.

    In evaluation: `images -> [{"boxes" (D, 4), "scores" (D,), "labels" (D,)}, ...]`, one per image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        cls_loss: Loss,
        box_loss: Loss,
        prior: float | None,
        transform: InputTransform,
        norm_layer: Callable[..., nn.Module] | None,
        levels: int,
        **rules: Unpack[Rules],
    ) -> None:
        """`prior`: probability of foreground that the initial bias amounts to; None for no bias."""
        prior = check_losses(cls_loss, box_loss, prior)
        if getattr(cls_loss, "exclusive", False):
            raise ValueError(
                "loss.cls: is a softmax over the classes and background, which RetinaNet does not predict; "
                "choose another loss/cls, or model=faster_rcnn_r50"
            )
        chosen: Any = checked(levels, **rules)
        sizes, scales, ratios = (chosen.pop(key) for key in ("anchor_sizes", "anchor_scales", "aspect_ratios"))
        sides = tuple(tuple(round(size * scale) for scale in scales) for size in sizes)
        anchors = AnchorGenerator(sides, (tuple(ratios),) * levels)
        channels, per_place = cast(int, backbone.out_channels), anchors.num_anchors_per_location()[0]
        self.train_padding = chosen.pop("train_padding")
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=anchors,
            head=Head(
                ClassificationHead(channels, per_place, num_classes, cls_loss, prior, norm_layer),
                RegressionHead(channels, per_place, box_loss, norm_layer),
            ),
            **chosen,
        )
        self.transform = transform

    @property
    def losses(self) -> tuple[Loss, Loss]:
        """Of classes and boxes."""
        return self.head.classification_head.loss, self.head.regression_head.loss

    @losses.setter
    def losses(self, losses: tuple[Loss, Loss]) -> None:
        self.head.classification_head.loss, self.head.regression_head.loss = losses

    def compute_loss(self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor]) -> dict[str, Tensor]:
        boxes = [target["boxes"] for target in targets]
        crowds = [target.get("crowds", target["boxes"][:0]) for target in targets]
        rule, outside = self.proposal_matcher, None
        if not self.train_padding:
            outside = beyond(anchors[0], torch.stack([target["size"] for target in targets]))
        matched = match(boxes, crowds, anchors[0], rule.high_threshold, rule.low_threshold, outside)
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


def check_losses(cls_loss: Loss | None, box_loss: Loss | None, prior: float | None) -> float:
    """The prior, 0.5 (a bias of zero) for None; ValueError when it is no probability, or a loss is missing."""
    if cls_loss is None or box_loss is None:
        raise ValueError("loss: this model brings none of its own; choose another than loss=stock")
    if prior is None:
        return 0.5
    if not isinstance(prior, int | float) or not 0 < prior < 1:
        raise ValueError(f"loss.prior={prior}: must lie in (0, 1); null starts without a bias")
    return prior


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """This worker's share of the mean over the valid values of all workers: the shares' mean is that mean."""
    return (values * valid).sum() / _pooled(valid.sum()).clamp(min=1)


def share(chosen: Tensor) -> Tensor:
    """Of the elements of all workers, the part that is true."""
    return _pooled(chosen.sum()) / _pooled(torch.full((), chosen.numel(), device=chosen.device)).clamp(min=1)


def _pooled(number: Tensor) -> Tensor:
    """Its mean over all workers."""
    if not dist.is_available() or not dist.is_initialized():
        return number
    dist.all_reduce(number)
    return number / dist.get_world_size()


def _knows_levels(loss: Loss) -> bool:
    """Whether the loss is to be told which pyramid level each anchor is of (`scope` of GHM-C and GHM-R)."""
    return getattr(loss, "scope", "pooled") != "pooled"


def _level_after_level(part: Tensor, sizes: list[int]) -> Tensor:
    """(N, A, ...) to (N A, ...), all images' anchors of the first level first; `sizes` are an image's."""
    return torch.cat([level.flatten(0, 1) for level in part.split(sizes, dim=1)])


def retinanet_tiny(
    num_classes: int,
    cls_loss: Loss,
    box_loss: Loss,
    prior: float | None,
    max_size: int = 320,
    **rules: Unpack[Rules],
) -> RetinaNet:
    """0.6 million parameters, three levels, anchors of 12 to 76 pixels; trains from nothing in minutes.

    Images keep their size unless their long side exceeds `max_size` pixels.
    """
    rules = {"anchor_sizes": [12, 24, 48], **rules}
    transform = InputTransform(None, max_size)
    return RetinaNet(TinyFPN(), num_classes, cls_loss, box_loss, prior, transform, group_norm, 3, **rules)


def retinanet(
    backbone: ResNet,
    num_classes: int,
    cls_loss: Loss,
    box_loss: Loss,
    prior: float | None,
    weights: str | None = None,
    norm: Norm = "frozen",
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    **rules: Unpack[Rules],
) -> RetinaNet:
    """The paper's network: a ResNet with FPN, P3 to P7. `weights`, `norm`: see `resnet_fpn`."""
    rules = {"anchor_sizes": [32, 64, 128, 256, 512], **rules}
    transform = InputTransform(min_size, max_size)
    pyramid = resnet_fpn(backbone, weights, "P3-P7", norm)
    return RetinaNet(pyramid, num_classes, cls_loss, box_loss, prior, transform, None, 5, **rules)
