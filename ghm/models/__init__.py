"""torchvision's detectors, with the losses of this project injected into their heads."""

import ghm.operators  # noqa: F401  (torchvision imports only after it, see there)
from ghm.models.retinanet import RetinaNet, retinanet_r50, retinanet_tiny

__all__ = ["RetinaNet", "retinanet_r50", "retinanet_tiny"]
