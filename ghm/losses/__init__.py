"""Losses of the paper and its baselines, all called as `loss(input, target, valid=None) -> scalar`.

Needs torch alone. Every loss is the weighted mean over its valid elements (Eq. 8, 19), except the
focal loss, which its authors divide by the number of positives, and OHEM, a mean over what it keeps.
"""

from ghm.losses.cross_entropy import CrossEntropy
from ghm.losses.diagnostics import Diagnostics, diagnose, diagnose_boxes
from ghm.losses.focal import FocalLoss
from ghm.losses.ghm_c import GHMC
from ghm.losses.ghm_r import GHMR
from ghm.losses.harmonized import MMDET
from ghm.losses.ohem import OHEM
from ghm.losses.smooth_l1 import ASL1, SmoothL1
from ghm.losses.softmax import SoftmaxCrossEntropy, SoftmaxGHMC

__all__ = [
    "ASL1",
    "GHMC",
    "GHMR",
    "MMDET",
    "OHEM",
    "CrossEntropy",
    "Diagnostics",
    "FocalLoss",
    "SmoothL1",
    "SoftmaxCrossEntropy",
    "SoftmaxGHMC",
    "diagnose",
    "diagnose_boxes",
]
