"""Images in: data sets in COCO's terms, drawn or read, and the batches made of them."""

import ghm.operators  # noqa: F401  (torchvision imports only after it, see there)
from ghm.data.coco import coco_folder
from ghm.data.dataset import Data, DetectionDataset
from ghm.data.loader import some_loader, train_loader, val_loader
from ghm.data.shapes import shapes

__all__ = ["Data", "DetectionDataset", "coco_folder", "shapes", "some_loader", "train_loader", "val_loader"]
