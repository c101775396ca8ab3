"""How far a mean over few values may be off."""

import math
from collections.abc import Sequence
from statistics import stdev

from scipy import special


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % confidence interval of the mean of two values or more, by Student's t."""
    return float(special.stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))
