"""What GHM-C and GHM-R share: a density for the batch, or for each pyramid level."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn

from ghm.losses.density import GradientDensity
from ghm.losses.elements import require, rows_of

# As GHMC and GHMR of mmdetection 3.3.0 do it: GHMC(bins=10, momentum=0.75, **MMDET).
MMDET: dict[str, Any] = {"bias_correction": False, "emptied": "stay", "counts": "local", "scope": "shared"}
# Steps that an average of unknown age counts for: neither bias nor warm-up is left.
SETTLED = 2**31


class Options(TypedDict, total=False):
    """Settings that deviate from the paper or from public code; explained at `GradientDensity`."""

    matched: bool
    bias_correction: bool
    emptied: Literal["decay", "stay"]
    counts: Literal["world", "local"]
    accumulation: int
    max_weight: float | None
    new_bins: Literal["error", "reset"]
    scope: Literal["pooled", "level", "shared"]
    levels: int


class Harmonized(nn.Module):
    r"""A loss whose elements are weighted by the density of their gradient norm.

    - `scope="pooled"`: one density of the whole batch, the paper's. `"level"`: a density for each of
      `levels` pyramid levels, and the sum of their losses. `"shared"`: the same, but with one moving
      average, moved by each level in turn, as mmdetection does without saying so. The latter two need
      `level_sizes` in every call.

    `density` and `options` are the settings of `GradientDensity`. A saved `acc_sum` of mmdetection's losses
    loads as the average of the first density.
    """

    def __init__(
        self,
        weight: float,
        *density: Any,
        scope: Literal["pooled", "level", "shared"] = "pooled",
        levels: int = 5,
        **options: Any,
    ) -> None:
        super().__init__()
        require(scope in ("pooled", "level", "shared"), "scope", scope, "must be 'pooled', 'level' or 'shared'")
        whole = isinstance(levels, int) and levels >= 1
        require(whole, "levels", levels, "must be a whole number of 1 or more (P3 to P7: 5)")
        once_a_step = scope != "shared" or options.get("accumulation", 1) == 1
        require(once_a_step, "scope", scope, "moves its average several times a step: needs accumulation=1")
        self.weight, self.scope, self.levels = weight, scope, levels
        count = levels if scope == "level" else 1
        self.densities = nn.ModuleList(GradientDensity(*density, **options) for _ in range(count))

    @property
    def density(self) -> GradientDensity:
        """The first density, which is the only one unless `scope="level"`."""
        return cast(GradientDensity, self.densities[0])

    @property
    def scale(self) -> float:
        """`weight`, times the number of ranks where N is theirs too: DistributedDataParallel divides by it."""
        return self.weight * self.density.ranks

    def weights(self, gradient: Tensor, ignored: Tensor | None, level_sizes: Sequence[int] | None) -> Tensor:
        r"""\beta_i / N for each element of `gradient` (any shape); `level_sizes` split its first dimension."""
        if self.scope == "pooled":
            return self.density(gradient, ignored)
        sizes = rows_of(level_sizes, len(gradient), self.scope)
        if self.scope == "level" and len(sizes) > self.levels:
            raise ValueError(f"levels={self.levels}: the detector has {len(sizes)}; set levels={len(sizes)}")
        densities: Iterable[nn.Module] = self.densities
        if self.scope == "shared":
            densities = repeat(self.density)
            self.density.average.remember(len(sizes))
        masks = repeat(None) if ignored is None else ignored.split(sizes)
        levels = zip(densities, gradient.split(sizes), masks, strict=False)
        return torch.cat([density(part, mask) for density, part, mask in levels])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        edges, counts = (state_dict.pop(f"{prefix}{name}", None) for name in ("edges", "acc_sum"))
        if edges is not None:  # mmdetection's; without moving average it has no acc_sum
            average = f"{prefix}densities.0.average"
            state_dict[f"{average}.counts"] = torch.zeros(len(edges) - 1) if counts is None else counts
            state_dict[f"{average}.updates"] = torch.tensor(SETTLED if counts is not None else 0)
        super()._load_from_state_dict(state_dict, prefix, *rest)
