"""Gradient norms of a trained detector over data: what Figures 1 to 5 of the paper are drawn from."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghm.losses import ASL1, GHMC, GHMR, CrossEntropy, Diagnostics, FocalLoss, SmoothL1, diagnose, diagnose_boxes
from ghm.losses.elements import select
from ghm.losses.histogram import histogram, of_regions, region_of
from ghm.models.caught import Call, LastCall, caught

REGIONS = 100  # of the distributions
ERRORS = torch.cat([torch.linspace(0, 0.5, 51, dtype=torch.float64), torch.tensor([math.inf], dtype=torch.float64)])
Losses = dict[str, nn.Module]


@dataclass
class Gradients:
    """Sums over batches, on the CPU.

    `classes`, `boxes`: by name of the loss, in M regions of g (Eq. 3) and gr (below Eq. 18). `by_class` (C, REGIONS),
    `by_level`, `boxes_by_level` (L, REGIONS): examples. `by_error`: by name of the loss, the sum of gradient magnitudes
    (E,) of the box coordinates whose |d| lies between two of `ERRORS`; `errors` (E,) counts them.
    """

    classes: dict[str, Diagnostics] = field(default_factory=dict)
    boxes: dict[str, Diagnostics] = field(default_factory=dict)
    by_class: Tensor | None = None
    by_level: Tensor | None = None
    boxes_by_level: Tensor | None = None
    errors: Tensor | None = None
    by_error: dict[str, Tensor] = field(default_factory=dict)


class Watch:
    """What the losses do to the gradient at the end of each epoch of a training, for any detector with our losses.

    It costs one more call of each loss an epoch. `calls`: of a loss in an epoch.
    """

    def __init__(self, model: Any, calls: int) -> None:
        own = getattr(model, "losses", (None, None))
        self.classes, self.boxes = (None if loss is None else LastCall(loss, calls) for loss in own)

    def look(self) -> dict[str, dict[str, list[float]]]:
        """Of `classes` and `boxes`: `examples`, `weights` and `gradient` (M,) by region; every worker must ask.

        Empty where there is nothing: torchvision's own losses, or a softmax, which has no g.
        """
        seen: dict[str, Diagnostics] = {}
        if (call := _taken(self.classes)) is not None and not getattr(call.loss, "exclusive", False):
            seen["classes"] = diagnose(call.loss, *call.batch, 30, **call.named)
        if (call := _taken(self.boxes)) is not None:
            seen["boxes"] = diagnose_boxes(call.loss, *call.batch, 10, getattr(call.loss, "mu", 0.02), **call.named)
        return {
            name: {
                "examples": (one.counts / one.counts.sum().clamp(min=1)).tolist(),
                "weights": one.weights.tolist(),
                "gradient": one.gradient_share.tolist(),
                "evenness": [float(one.evenness)],
            }
            for name, one in seen.items()
        }


def scalars(regions: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Of what a `Watch` saw, metrics: how even the gradient is over the regions, and the shares of both ends."""
    named = {"classes": "cls", "boxes": "box"}
    metrics = {}
    for name, seen in regions.items():
        prefix = f"train/{named[name]}_gradient"
        metrics[f"{prefix}_evenness"] = seen["evenness"][0]
        metrics[f"{prefix}_easiest"], metrics[f"{prefix}_hardest"] = seen["gradient"][0], seen["gradient"][-1]
    return metrics


class _Taken(NamedTuple):
    loss: nn.Module
    batch: tuple[Tensor, Tensor, Tensor | None]  # input, target, valid
    named: dict[str, Any]


def _taken(last: LastCall | None) -> _Taken | None:
    kept = None if last is None else last.take()
    if last is None or kept is None:
        return None
    (input, target, *valid), named = kept
    return _Taken(last.loss, (input, target, valid[0] if valid else None), named)


def collect(model: Any, batches: Iterable[Any], device: torch.device, bins: int, mu: float) -> Gradients:
    """Of what `model`, a detector with our losses, would be trained with on `batches`, in `bins` regions; not trained.

    Each loss beside the model's own is that of the paper, its density that of a batch. `mu` is that of gr and ASL1.
    A two-stage detector whose classes exclude one another has no g, and so nothing of classes.
    """
    own_classes, own_boxes = model.losses
    for_classes, for_boxes = of_the_paper(bins, mu, device)
    exclusive = getattr(own_classes, "exclusive", False)
    made = Gradients()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    for images, targets in batches:
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with caught(model) as (classes, boxes), torch.no_grad():
            model([image.to(device) for image in images], moved)
        if not exclusive and classes.call is not None:
            _add_classes(made, classes.call, _with_own(for_classes, own_classes), bins)
        if boxes.call is not None and len(boxes.call.input):
            _add_boxes(made, boxes.call, _with_own(for_boxes, own_boxes), mu)
    return made


def of_the_paper(bins: int, mu: float, device: torch.device) -> tuple[Losses, Losses]:
    """For classes and boxes, with their state on the device."""
    for_classes: Losses = {"CE": CrossEntropy(), "FL": FocalLoss(), "GHM-C": GHMC(bins, 0.0)}
    for_boxes: Losses = {"SL1": SmoothL1(), "ASL1": ASL1(mu), "GHM-R": GHMR(mu, 10, 0.0)}
    for loss in (*for_classes.values(), *for_boxes.values()):
        loss.to(device)
    return for_classes, for_boxes


def _with_own(losses: Losses, own: nn.Module) -> Losses:
    """The model's own loss too, unless it is one of those but for its weight."""

    def settings(loss: nn.Module) -> dict[str, Any]:
        return {key: value for key, value in vars(loss).items() if key[0] != "_" and key not in ("training", "weight")}

    plain = not list(own.children())  # without a density, which has a state
    if plain and any(type(one) is type(own) and settings(one) == settings(own) for one in losses.values()):
        return losses
    return losses | {f"this run's {type(own).__name__}": own}


def _add_classes(made: Gradients, call: Call, losses: Losses, bins: int) -> None:
    for name, loss in losses.items():
        seen = diagnose(loss, call.input, call.target, call.valid, bins, **_told(loss, call))
        made.classes[name] = _cpu(seen, made.classes.get(name))
    x, y, mask = select(call.input, call.target, call.valid)
    region = region_of(x.sigmoid() - y, REGIONS, None if mask is None else ~mask).view(x.shape)
    made.by_class = _plus(made.by_class, _histograms(region.unbind(1)))
    if call.level_sizes:
        made.by_level = _plus(made.by_level, _histograms(region.split(call.level_sizes)))


def _add_boxes(made: Gradients, call: Call, losses: Losses, mu: float) -> None:
    d = (call.input - call.target).double()
    norm = d / d.hypot(torch.full((), mu, dtype=d.dtype, device=d.device))
    if call.level_sizes:
        region = region_of(norm, REGIONS, None).view(norm.shape)
        made.boxes_by_level = _plus(made.boxes_by_level, _histograms(region.split(call.level_sizes)))
    place = torch.bucketize(d.abs().flatten(), ERRORS.to(d.device), right=True) - 1
    made.errors = _plus(made.errors, torch.bincount(place, minlength=len(ERRORS) - 1).cpu())
    for name, loss in losses.items():
        seen = diagnose_boxes(loss, call.input, call.target, bins=10, mu=mu, **_told(loss, call))
        made.boxes[name] = _cpu(seen, made.boxes.get(name))
        x = call.input.clone().requires_grad_()
        loss.eval()  # whose moving average stays as it is
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(x, call.target, **_told(loss, call)), x)
        sums = torch.zeros(len(ERRORS) - 1, dtype=torch.float64, device=d.device)
        # Of the sum over boxes, not their mean, so that batches of many and of few count alike.
        sums = sums.scatter_add_(0, place, gradient.abs().double().flatten() * gradient.numel()).cpu()
        made.by_error[name] = _plus(made.by_error.get(name), sums)


def _told(loss: nn.Module, call: Call) -> dict[str, Any]:
    return {} if getattr(loss, "scope", "pooled") == "pooled" else {"level_sizes": call.level_sizes}


def _histograms(regions: Iterable[Tensor]) -> Tensor:
    """(parts, REGIONS)."""
    return torch.stack([of_regions(histogram(part.flatten(), REGIONS + 2)) for part in regions]).cpu()


def _plus(before: Tensor | None, now: Tensor) -> Tensor:
    return now if before is None else before + now


def _cpu(seen: Diagnostics, before: Diagnostics | None) -> Diagnostics:
    here = Diagnostics(*(getattr(seen, name).cpu() for name in ("counts", "norm", "magnitude", "plain")))
    return here if before is None else before + here
