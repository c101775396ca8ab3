"""torchvision's detectors, with the losses of this project injected into their heads."""

import ghm.operators  # noqa: F401  (torchvision imports only after it, see there)
from ghm.models.faster_rcnn import FasterRCNN, faster_rcnn, faster_rcnn_tiny, stock_faster_rcnn, stock_mask_rcnn
from ghm.models.retinanet import RetinaNet, retinanet, retinanet_tiny

__all__ = [
    "FasterRCNN",
    "RetinaNet",
    "faster_rcnn",
    "faster_rcnn_tiny",
    "retinanet",
    "retinanet_tiny",
    "stock_faster_rcnn",
    "stock_mask_rcnn",
]
