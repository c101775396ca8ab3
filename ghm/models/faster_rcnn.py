"""torchvision's Faster R-CNN with injected losses in its RoI head, for Table 7; and its own, for Table 3."""

import math
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import roi_heads, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, clip_boxes_to_image

from ghm.models.backbones import Norm, ResNet, TinyFPN, resnet_fpn
from ghm.models.matching import covered
from ghm.models.retinanet import Loss, Targets, check_losses, share
from ghm.models.rules import Inference, checked
from ghm.models.transform import InputTransform


class RegionProposals(rpn.RegionProposalNetwork):
    """torchvision's, except that background in crowd regions teaches nothing."""

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            if len(crowds := target.get("crowds", target["boxes"][:0])):
                label[(label == 0) & covered(anchor, crowds)] = -1
        return labels, boxes


class RoIHeads(roi_heads.RoIHeads):
    """torchvision's box head, its losses injected.

    A class loss that is `exclusive` gets logits (R, 1 + C), background first, and class indices (R,).
    Any other judges each class alone: it gets the logits (R, C) of the classes and one-hot targets, and
    scores are sigmoids. The box loss gets the offsets (P, 4) of the true class of each positive; its mean over
    them is taken over all boxes that were sampled, positive or not (Girshick 2015, torchvision, Table 7).
    """

    def __init__(self, cls_loss: Loss, box_loss: Loss, *parts: nn.Module, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.cls_loss, self.box_loss = cls_loss, box_loss
        self.exclusive = getattr(cls_loss, "exclusive", False)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training or targets is None:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, _, labels_by_image, offsets_by_image = self.select_training_samples(proposals, targets)
        labels, wanted = torch.cat(labels_by_image), torch.cat(offsets_by_image)
        logits, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        found = torch.where(labels > 0)[0]
        offsets = offsets.unflatten(1, (-1, 4))[found, labels[found]]
        box = self.box_loss(offsets, wanted[found]) * share(labels > 0)
        return [], {**self._classify(logits, labels), "loss_box": box}

    def _classify(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """`loss_cls`, and `ce`, the plain cross-entropy; 0 where crowds leave nothing to sample."""
        if self.exclusive:
            ce = F.cross_entropy(logits.detach().float(), labels, reduction="sum") / max(len(labels), 1)
            return {"loss_cls": self.cls_loss(logits, labels), "ce": ce}
        logits, classes = logits[:, 1:], torch.arange(1, logits.shape[1], device=labels.device)
        one_hot = labels[:, None] == classes
        ce = F.binary_cross_entropy_with_logits(logits.detach().float(), one_hot.float(), reduction="sum")
        ce = ce / max(one_hot.numel(), 1)
        return {"loss_cls": self.cls_loss(logits, one_hot), "ce": ce}

    def select_training_samples(self, proposals: list[Tensor], targets: Targets) -> Any:
        """Without background in crowd regions."""
        kept = []
        for boxes, target in zip(proposals, targets, strict=True):
            if len(crowds := target.get("crowds", target["boxes"][:0])):
                background = (box_iou(target["boxes"], boxes) < self.proposal_matcher.high_threshold).all(dim=0)
                boxes = boxes[~(background & covered(boxes, crowds))]
            kept.append(boxes)
        return super().select_training_samples(kept, targets)

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Any:
        if self.exclusive:
            return super().postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        sizes = [len(each) for each in proposals]
        # `decode` would forget the classes where there is no proposal.
        decoded = self.box_coder.decode_single(box_regression, torch.cat(proposals)).unflatten(1, (-1, 4))
        results = []
        for boxes, logits, shape in zip(decoded.split(sizes), class_logits.split(sizes), image_shapes, strict=True):
            scores, boxes = logits[:, 1:].sigmoid(), clip_boxes_to_image(boxes[:, 1:], shape)
            sides = boxes[..., 2:] - boxes[..., :2]
            place, label = torch.where((scores > self.score_thresh) & (sides >= 1e-2).all(dim=2))
            boxes, scores = boxes[place, label], scores[place, label]
            kept = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
            results.append((boxes[kept], scores[kept], label[kept] + 1))
        return tuple(zip(*results, strict=True))


class FromZero(nn.Module):
    """Mixed into a torchvision detector: labels count from 0, without background, and losses have our names."""

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Any:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        results = super().forward(images, targets)
        if self.training:
            own = {"loss_classifier": "loss_cls", "loss_box_reg": "loss_box"}
            parts = {own.get(name, name): value for name, value in results.items()}
            return {"ce": parts["loss_cls"].detach(), **parts}
        return [{**result, "labels": result["labels"] - 1} for result in results]


class FasterRCNN(FromZero, TorchvisionFasterRCNN):
    """In training: `(images, targets) -> {"loss_cls", "loss_box", "ce", and the losses of the proposals}`."""

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        cls_loss: Loss,
        box_loss: Loss,
        prior: float | None,
        transform: InputTransform,
        parts: dict[str, Any] | None = None,
        proposals_per_img: int = 2000,
        samples_per_img: int = 512,
        **rules: Unpack[Inference],
    ) -> None:
        """`parts`: of torchvision's FasterRCNN, as `box_head`, in place of those of a pyramid P2 to P6.

        In training so many proposals an image come through NMS, and so many of them are sampled.
        """
        p = check_losses(cls_loss, box_loss, prior)
        for name, loss in (("cls", cls_loss), ("box", box_loss)):
            if (scope := getattr(loss, "scope", "pooled")) != "pooled":
                raise ValueError(f"loss.{name}.scope={scope}: boxes have no pyramid level here; set it to pooled")
        chosen = checked(**rules)
        super().__init__(backbone, **(parts or {"num_classes": 1 + num_classes}))
        self.transform = transform
        proposals, heads = cast(Any, self).rpn, cast(Any, self).roi_heads
        self.rpn = RegionProposals(
            proposals.anchor_generator,
            proposals.head,
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": proposals_per_img, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            cls_loss,
            box_loss,
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=samples_per_img,
            positive_fraction=0.25,
            bbox_reg_weights=None,  # 10, 10, 5, 5
            **{key: chosen[key] for key in Inference.__annotations__},  # type: ignore[literal-required]
        )
        if not self.roi_heads.exclusive:
            nn.init.constant_(heads.box_predictor.cls_score.bias, math.log(p / (1 - p)))

    @property
    def losses(self) -> tuple[Loss, Loss]:
        """Of classes and boxes, in the RoI head."""
        return self.roi_heads.cls_loss, self.roi_heads.box_loss

    @losses.setter
    def losses(self, losses: tuple[Loss, Loss]) -> None:
        self.roi_heads.cls_loss, self.roi_heads.box_loss = losses


class StockFasterRCNN(FromZero, TorchvisionFasterRCNN):
    """torchvision's, with its own losses."""


class StockMaskRCNN(FromZero, TorchvisionMaskRCNN):
    """torchvision's, with its own losses; needs `masks` (P, H, W) in its targets."""

    needs_masks = True


def faster_rcnn(
    backbone: ResNet,
    num_classes: int,
    cls_loss: Loss,
    box_loss: Loss,
    prior: float | None,
    weights: str | None = None,
    norm: Norm = "frozen",
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    **rules: Unpack[Inference],
) -> FasterRCNN:
    """Table 7's network: a ResNet with FPN, P2 to P6, and a box head with our losses.

    `weights`, `norm`: see `resnet_fpn`.
    """
    pyramid, transform = resnet_fpn(backbone, weights, "P2-P6", norm), InputTransform(min_size, max_size)
    return FasterRCNN(pyramid, num_classes, cls_loss, box_loss, prior, transform, **rules)


def faster_rcnn_tiny(
    num_classes: int,
    cls_loss: Loss,
    box_loss: Loss,
    prior: float | None,
    max_size: int = 320,
    **rules: Unpack[Inference],
) -> FasterRCNN:
    """0.7 million parameters, three levels, proposals from anchors of 16 to 64 pixels, 32 boxes an image sampled.

    Trains from nothing in minutes. Images keep their size unless their long side exceeds `max_size` pixels.
    """
    pyramid, levels = TinyFPN(), ["0", "1", "2"]
    parts = {
        "num_classes": None,  # the predictor's
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * len(levels)),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(pyramid.out_channels * 7**2, 128),
        "box_predictor": FastRCNNPredictor(128, 1 + num_classes),
    }
    transform = InputTransform(None, max_size)
    return FasterRCNN(pyramid, num_classes, cls_loss, box_loss, prior, transform, parts, 200, 32, **rules)


def stock_faster_rcnn(backbone: ResNet, num_classes: int, **settings: Any) -> StockFasterRCNN:
    """torchvision's Faster R-CNN as a row of Table 3. Settings as for `faster_rcnn`, the losses None."""
    return _stock(StockFasterRCNN, backbone, num_classes, **settings)


def stock_mask_rcnn(backbone: ResNet, num_classes: int, **settings: Any) -> StockMaskRCNN:
    """torchvision's Mask R-CNN as a row of Table 3. Settings as for `faster_rcnn`, the losses None."""
    return _stock(StockMaskRCNN, backbone, num_classes, **settings)


def _stock(
    kind: Any,
    backbone: ResNet,
    num_classes: int,
    cls_loss: None,
    box_loss: None,
    prior: None,
    weights: str | None = None,
    norm: Norm = "frozen",
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    **rules: Unpack[Inference],
) -> Any:
    if cls_loss is not None or box_loss is not None:
        raise ValueError("loss: this model trains with torchvision's own losses; add loss=stock")
    chosen: Any = checked(**rules)
    kept = {f"box_{key}": chosen[key] for key in Inference.__annotations__}
    model = kind(resnet_fpn(backbone, weights, "P2-P6", norm), 1 + num_classes, **kept)
    model.transform = InputTransform(min_size, max_size)
    return model
