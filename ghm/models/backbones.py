"""Feature pyramids under the detectors."""

import pickle
from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

group_norm = partial(nn.GroupNorm, 8)


class TinyFPN(nn.Module):
    """A small convolutional pyramid with GroupNorm that trains from nothing on a processor.

    Images (N, 3, H, W) become maps of `out_channels` at strides 8, 16 and 32.
    """

    def __init__(self, width: int = 24, out_channels: int = 48) -> None:
        super().__init__()
        block = partial(Conv2dNormActivation, norm_layer=group_norm)
        self.stem = nn.Sequential(block(3, width, 3, stride=2), block(width, width, 3, stride=2))
        channels = [2 * width, 4 * width, 4 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(block(before, after, 3, stride=2), block(after, after, 3))
            for before, after in zip([width, *channels], channels, strict=False)
        )
        self.fpn = FeaturePyramidNetwork(channels, out_channels, norm_layer=group_norm)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features, x = OrderedDict(), self.stem(images)
        for level, stage in enumerate(self.stages):
            features[str(level)] = x = stage(x)
        return self.fpn(features)


def resnet50_fpn(weights: str | None) -> BackboneWithFPN:
    """ResNet-50 with P3 to P7, 256 channels, as RetinaNet uses it.

    `weights` is the path of a torchvision ResNet-50 state dict: then BatchNorm is frozen, as are the
    stem and the first stage. Without it the network trains from nothing, with GroupNorm.
    """
    if weights is None:
        body, trainable = resnet50(norm_layer=partial(nn.GroupNorm, 32)), 5
    else:
        body, trainable = resnet50(norm_layer=FrozenBatchNorm2d), 3
        _load(body, weights)
    extra = LastLevelP6P7(256, 256)
    return _resnet_fpn_extractor(body, trainable, returned_layers=[2, 3, 4], extra_blocks=extra)


def _load(body: nn.Module, weights: str) -> None:
    """All of a classifier's weights but its last layer. ValueError when the file holds something else."""
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        # `assign`, so that a model on the meta device, built to check settings, checks this too.
        missing = [
            key for key in body.load_state_dict(kept, strict=False, assign=True).missing_keys if key[:3] != "fc."
        ]
        if missing:
            raise KeyError(missing[0])
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.weights={weights}: not a ResNet-50 state dict of torchvision ({reason}); give the path of one"
        ) from error
