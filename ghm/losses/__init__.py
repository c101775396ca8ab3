"""Losses of the paper and its baselines, all called as `loss(input, target, valid=None) -> scalar`.

Needs torch alone. Every loss is the weighted mean over its valid elements (Eq. 8, 19), except the
focal loss, which its authors divide by the number of positives, and OHEM, a mean over what it keeps.
"""

from ghm.losses.cross_entropy import CrossEntropy
from ghm.losses.focal import FocalLoss
from ghm.losses.ghm_c import GHMC
from ghm.losses.ghm_r import GHMR
from ghm.losses.ohem import OHEM
from ghm.losses.smooth_l1 import ASL1, SmoothL1

__all__ = ["ASL1", "GHMC", "GHMR", "OHEM", "CrossEntropy", "FocalLoss", "SmoothL1"]
