"""Feature pyramids under the detectors."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

ResNet = Literal["resnet50", "resnet101", "resnext101_32x8d"]
Norm = Literal["frozen", "trained"]
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


def resnet_fpn(
    name: ResNet, weights: str | None, levels: Literal["P3-P7", "P2-P6"], norm: Norm = "frozen"
) -> BackboneWithFPN:
    """torchvision's ResNet or ResNeXt with a pyramid of 256 channels.

    `levels`: P3 to P7 as RetinaNet uses them (P6 and P7 by strided convolutions of C5), or P2 to P6 as
    Faster R-CNN does. `weights` is the path of a torchvision state dict, or the name of torchvision's
    own weights, as IMAGENET1K_V1: then the stem and the first stage are frozen, as is all BatchNorm unless
    `norm="trained"`, by which the statistics are those of the images of a step. Without weights the network
    trains from nothing, with GroupNorm.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm}: must be one of {', '.join(get_args(Norm))}")
    if name not in get_args(ResNet):
        raise ValueError(f"backbone={name}: must be one of {', '.join(get_args(ResNet))}")
    if weights is None:
        body, trainable = get_model(name, weights=None, norm_layer=partial(nn.GroupNorm, 32)), 5
    else:
        body, trainable = get_model(name, weights=None, norm_layer=FrozenBatchNorm2d if norm == "frozen" else None), 3
        _load(body, _read(name, weights), weights)
    if levels == "P3-P7":
        extra = LastLevelP6P7(2048, 256)
        return _resnet_fpn_extractor(body, trainable, returned_layers=[2, 3, 4], extra_blocks=extra)
    return _resnet_fpn_extractor(body, trainable, extra_blocks=LastLevelMaxPool())


def _read(name: str, weights: str) -> Mapping[str, Any]:
    """A state dict from a file, from torchvision's cache, or over the network; no code in it is run."""
    if os.path.sep not in weights and weights in (known := get_model_weights(name)).__members__:
        url = known[weights].url
        try:
            return known[weights].get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
        except Exception as error:  # no network, or anything but a state dict in the cache
            cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
            raise ValueError(
                f"weights={weights}: could not be fetched ({' '.join(str(error).split())[:200]}); "
                f"fetch {url} yourself and put it at {cached}, or give its path as model.weights=PATH"
            ) from error
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        names = ", ".join(get_model_weights(name).__members__)
        raise ValueError(f"weights={weights}: no such file; give the path of one, or one of {names}") from error
    except Exception as error:  # what is no state dict makes the unpickler fail in any way
        raise _not_a_state_dict(weights, error) from error


def _load(body: nn.Module, state: Mapping[str, Any], weights: str) -> None:
    """All of a classifier's weights but its last layer. ValueError when `state` is of something else."""
    try:
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        # `assign`, so that a model on the meta device, built to check settings, checks this too.
        found = body.load_state_dict(kept, strict=False, assign=True)
        body.float()  # whatever the file's precision
        missing = [key for key in found.missing_keys if not key.startswith("fc.")]
        if wrong := missing + found.unexpected_keys:
            raise KeyError(wrong[0])
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise _not_a_state_dict(weights, error) from error


def _not_a_state_dict(weights: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"weights={weights}: not torchvision's state dict of this backbone ({reason}); give the path of one"
    )
