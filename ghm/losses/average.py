"""The moving average of counts (Eq. 12-13), the only state that a loss has."""

from collections import deque
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ghm.losses.elements import require


class Step(NamedTuple):
    """What one call sees: `average` (M,) of Eq. 13, `counts` (M,) of its step, `updates` before that step."""

    average: Tensor
    counts: Tensor
    updates: Tensor


class MovingAverage(nn.Module):
    r"""S_j = \alpha S_j + (1 - \alpha) R_j (Eq. 12) for M regions; \alpha is `momentum`.

    The options are explained at `GradientDensity`.

    State: `counts` S (M,) float64 and the number of `updates`; with `accumulation` also what is `pending`
    after some `calls`. It changes in training only, never under `no_grad`, not a second time when activation
    checkpointing runs a forward again, and never by a step without an example.
    """

    counts: Tensor
    updates: Tensor
    pending: Tensor
    calls: Tensor

    def __init__(
        self,
        bins: int,
        momentum: float,
        bias_correction: bool,
        emptied: Literal["decay", "stay"],
        accumulation: int,
        new_bins: Literal["error", "reset"],
    ) -> None:
        super().__init__()
        whole = isinstance(bins, int) and bins >= 1
        require(whole, "bins", bins, "must be a whole number of 1 or more (the paper: 30)")
        rule = "must lie in [0, 1); 0 switches averaging off (the paper: 0.75)"
        require(0.0 <= momentum < 1.0, "momentum", momentum, rule)
        require(emptied in ("decay", "stay"), "emptied", emptied, "must be 'decay' or 'stay'")
        # Regions that stay are of different ages: no one t of 1 - alpha^t corrects them all.
        agrees = emptied == "decay" or not bias_correction
        require(agrees, "emptied", emptied, "needs bias_correction=False, as mmdetection has it")
        whole = isinstance(accumulation, int) and accumulation >= 1
        require(whole, "accumulation", accumulation, "must be a whole number of 1 or more calls a step")
        require(new_bins in ("error", "reset"), "new_bins", new_bins, "must be 'error' or 'reset'")
        self.bins, self.momentum = bins, float(momentum)
        self.bias_correction, self.emptied = bias_correction, emptied
        self.accumulation, self.new_bins = accumulation, new_bins
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(bins, dtype=torch.float64), persistent=accumulation > 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=accumulation > 1)
        # For activation checkpointing: the states from which the last updates began, and whether there were
        # any; its reentrant kind runs forward under no_grad first, and counts when it runs again in backward.
        self._before: deque[list[Tensor]] = deque(maxlen=1)
        self._recorded = False

    def forward(self, counts: Tensor) -> Step:
        """Count a call's examples (M,); outside training, as if in training, but nothing is kept."""
        replay = self.training and self._recorded and _in_backward()
        if replay:
            state = self._before[0]
            self._before.rotate(-1)
        else:
            # Copies, since what is handed out must not move with the buffers.
            state = [part.clone() for part in (self.counts, self.updates, self.pending, self.calls)]
        average, updates, pending, calls = state
        pending, calls = pending + counts, calls + 1
        # Within a step, what was counted so far stands for all of it.
        step = pending * (self.accumulation / calls)
        any_counted = pending.sum() > 0
        moved = self.momentum * average + (1.0 - self.momentum) * step
        moved = moved.where((step > 0) if self.emptied == "stay" else any_counted, average)
        if self.training and not replay:
            self._keep(state, moved, updates + any_counted, pending, calls)
        if self.bias_correction:
            moved = moved / (1.0 - self.momentum ** (updates + 1).double())
        return Step(moved, step, updates)

    def _keep(self, state: list[Tensor], moved: Tensor, updates: Tensor, pending: Tensor, calls: Tensor) -> None:
        if not torch.compiler.is_compiling():
            self._recorded = torch.is_grad_enabled() and not _in_backward()
            if self._recorded:
                self._before.append(state)
        if not torch.is_grad_enabled():
            return
        complete = calls == self.accumulation
        self.counts.copy_(moved.where(complete, self.counts))
        self.updates.copy_(updates.where(complete, self.updates))
        if self.accumulation > 1:
            self.pending.copy_(pending.masked_fill(complete, 0))
            self.calls.copy_(calls.masked_fill(complete, 0))

    def remember(self, calls: int) -> None:
        """How many calls one forward of the loss makes, which checkpointing will then repeat together."""
        if self._before.maxlen != calls:
            self._before = deque(self._before, maxlen=calls)

    def _apply(self, fn: Any, recurse: bool = True) -> "MovingAverage":
        """`half()` and the like move the state but keep its types: float16 ends at 65504 examples."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("pending", "calls"):  # between two steps they are zero, so that `accumulation` may change
            if self.accumulation == 1:
                state_dict.pop(f"{prefix}{name}", None)
            else:
                state_dict.setdefault(f"{prefix}{name}", torch.zeros_like(getattr(self, name)))
        saved = state_dict.get(f"{prefix}counts")
        if saved is not None and saved.shape != self.counts.shape:
            if self.new_bins == "error":
                raise ValueError(
                    f"bins={self.bins}: the saved average is of {len(saved)} regions; "
                    f"set bins={len(saved)}, or new_bins=reset to start the average anew"
                )
            for name in self.state_dict():
                state_dict[f"{prefix}{name}"] = torch.zeros_like(getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _in_backward() -> bool:
    """Whether autograd is running a backward pass, in which only checkpointing calls a loss."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
