"""Images of any size into one batch: torchvision's transform, with crowd regions and small images in mind."""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, on which the backbones were trained


class InputTransform(GeneralizedRCNNTransform):
    """Normalises, resizes to a short side of `min_size` pixels and a long side of at most `max_size`, and pads.

    Several `min_size`: one is drawn for each image in training (multi-scale), the last counts in evaluation.
    With `min_size=None` no image is enlarged.
    """

    def __init__(self, min_size: int | list[int] | None, max_size: int, **options: Any) -> None:
        several = min_size if isinstance(min_size, list) else [max_size if min_size is None else min_size]
        for name, value, sizes in (("max_size", max_size, [max_size]), ("min_size", min_size, several)):
            if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError(f"{name}={value}: must be a whole number of pixels above 0")
        self.enlarge = min_size is not None
        super().__init__(max_size if min_size is None else min_size, max_size, MEAN, STD, **options)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """torchvision's; targets are given the `size` (2,) of their image, height and width before padding."""
        batch, targets = super().forward(images, targets)
        for size, target in zip(batch.image_sizes, targets or (), strict=False):
            target["size"] = torch.tensor(size, device=batch.tensors.device)
        return batch, targets

    def resize(self, image: Tensor, target: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
        before = image.shape[-2:]
        if not self.enlarge and max(before) <= self.max_size:
            return image, target
        image, target = super().resize(image, target)
        if target is not None and "crowds" in target:
            target["crowds"] = resize_boxes(target["crowds"], before, image.shape[-2:])
        return image, target
