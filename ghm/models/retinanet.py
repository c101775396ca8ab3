"""torchvision's RetinaNet with injected losses.

torchvision averages one loss per image. Gradient density is a statistic of the mini-batch, so these
heads join the anchors of all images first and call each loss once a step.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import retinanet as torchvision_retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ghm.models.backbones import TinyFPN, group_norm, resnet50_fpn

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
        self, targets: Targets, head_outputs: dict[str, Any], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_cls`, and `ce`, the plain cross-entropy: a number that falls whatever the loss."""
        matched = torch.stack(matched_idxs)  # (N, A): box index, -1 background, -2 between thresholds
        logits = head_outputs["cls_logits"]  # (N, A, C)
        labels = torch.stack([_labels(target["labels"], match) for target, match in zip(targets, matched, strict=True)])
        valid, by_level = matched != self.BETWEEN_THRESHOLDS, {}
        if _knows_levels(self.loss):
            sizes = head_outputs["level_sizes"]
            logits, labels, valid = (_level_after_level(part, sizes) for part in (logits, labels, valid))
            by_level = {"level_sizes": [len(matched) * size for size in sizes]}
        else:
            logits, labels, valid = logits.flatten(0, 1), labels.flatten(), valid.flatten()
        one_hot = labels[:, None] == torch.arange(self.num_classes, device=labels.device)
        with torch.no_grad():
            ce = F.binary_cross_entropy_with_logits(logits.float(), one_hot.float(), reduction="none").mean(1)
            ce = (ce * valid).sum() / valid.sum().clamp(min=1)
        return {"loss_cls": self.loss(logits, one_hot, valid, **by_level), "ce": ce}


class RegressionHead(torchvision_retinanet.RetinaNetRegressionHead):
    """Box offsets, and the injected loss over the positive anchors of the whole batch."""

    def __init__(
        self, in_channels: int, num_anchors: int, loss: Loss, norm_layer: Callable[..., nn.Module] | None
    ) -> None:
        super().__init__(in_channels, num_anchors, norm_layer)
        self.loss = loss

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        offsets, wanted, found = [], [], []
        for target, output, anchor, match in zip(
            targets, head_outputs["bbox_regression"], anchors, matched_idxs, strict=True
        ):
            foreground = torch.where(match >= 0)[0]
            found.append(foreground)
            offsets.append(output[foreground])
            wanted.append(self.box_coder.encode_single(target["boxes"][match[foreground]], anchor[foreground]))
        x, y, by_level = torch.cat(offsets), torch.cat(wanted), {}
        if _knows_levels(self.loss):
            ends = torch.tensor(head_outputs["level_sizes"], device=x.device).cumsum(0)
            level = torch.bucketize(torch.cat(found), ends, right=True)
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
        self, targets: Targets, head_outputs: dict[str, Any], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        return {
            **self.classification_head.compute_loss(targets, head_outputs, matched_idxs),
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
        prior: float,
        base_sizes: tuple[int, ...],
        min_size: int,
        max_size: int,
        norm_layer: Callable[..., nn.Module] | None,
    ) -> None:
        """`base_sizes`: anchor side in pixels per pyramid level; 3 scales x 3 ratios are made of each."""
        if not isinstance(prior, int | float) or not 0 < prior < 1:
            raise ValueError(f"loss.prior={prior}: must lie in (0, 1); 0.5 starts without a bias")
        scales = [tuple(round(size * 2 ** (octave / 3)) for octave in range(3)) for size in base_sizes]
        anchors = AnchorGenerator(tuple(scales), ((0.5, 1.0, 2.0),) * len(base_sizes))
        channels, per_place = cast(int, backbone.out_channels), anchors.num_anchors_per_location()[0]
        super().__init__(
            backbone,
            num_classes,
            min_size=min_size,
            max_size=max_size,
            anchor_generator=anchors,
            head=Head(
                ClassificationHead(channels, per_place, num_classes, cls_loss, prior, norm_layer),
                RegressionHead(channels, per_place, box_loss, norm_layer),
            ),
            detections_per_img=100,  # what COCO scores
        )


class ShrinkOnly(GeneralizedRCNNTransform):
    """torchvision's input transform, which would also enlarge small images to a common side."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
        if max(image.shape[-2:]) <= self.max_size:
            return image, target
        return super().resize(image, target)


def _knows_levels(loss: Loss) -> bool:
    """Whether the loss is to be told which pyramid level each anchor is of (`scope` of GHM-C and GHM-R)."""
    return getattr(loss, "scope", "pooled") != "pooled"


def _level_after_level(part: Tensor, sizes: list[int]) -> Tensor:
    """(N, A, ...) to (N A, ...), all images' anchors of the first level first; `sizes` are an image's."""
    return torch.cat([level.flatten(0, 1) for level in part.split(sizes, dim=1)])


def _labels(labels: Tensor, match: Tensor) -> Tensor:
    """Class of the box each anchor is matched to (A,), -1 where there is none."""
    if not len(labels):
        return torch.full_like(match, -1)
    return labels[match.clamp(min=0)].where(match >= 0, -1)


def retinanet_tiny(num_classes: int, cls_loss: Loss, box_loss: Loss, prior: float, max_size: int = 320) -> RetinaNet:
    """0.6 million parameters, three levels, anchors of 12 to 76 pixels; trains from nothing in minutes.

    Images keep their size unless their long side exceeds `max_size` pixels.
    """
    model = RetinaNet(TinyFPN(), num_classes, cls_loss, box_loss, prior, (12, 24, 48), max_size, max_size, group_norm)
    model.transform = ShrinkOnly(max_size, max_size, model.transform.image_mean, model.transform.image_std)
    return model


def retinanet_r50(
    num_classes: int,
    cls_loss: Loss,
    box_loss: Loss,
    prior: float,
    weights: str | None = None,
    min_size: int = 800,
    max_size: int = 1333,
) -> RetinaNet:
    """The paper's network: ResNet-50 with FPN, P3 to P7. `weights`: see `resnet50_fpn`."""
    sizes = (32, 64, 128, 256, 512)
    return RetinaNet(resnet50_fpn(weights), num_classes, cls_loss, box_loss, prior, sizes, min_size, max_size, None)
