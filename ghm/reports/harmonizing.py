"""Figures 1 to 5 of the paper for a detector of ours: where its gradients are, and what each loss makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ghm.reports.figures import PALETTE, STYLE

Array = NDArray[np.float64]
PRINT = STYLE | {"pdf.fonttype": 42, "savefig.bbox": "tight"}  # letters stay letters in the PDF
# Told apart without colour too, in print.
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
CLASSES = 8  # drawn each; the others are left out


def write(gradients: Any, class_names: Sequence[str], folder: Path) -> list[Path]:
    """Draw a `ghm.gradients.Gradients` into `folder`, each figure as PNG and PDF; the files' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(PRINT):
        for name, figure in _figures(gradients, class_names).items():
            for suffix in ("png", "pdf"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path)
                written.append(path)
    return written


def write_epochs(history: Sequence[Any], folder: Path) -> Path:
    """Draw what the losses did in each epoch of a run's history, as its checkpoint keeps it; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "harmonizing.png"
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        _over_epochs([epoch for epoch in history if epoch.get("regions")]).savefig(path)
    return path


def _over_epochs(epochs: Sequence[Any]) -> Figure:
    """A row for classes, one for boxes: examples, weights and gradient by epoch and region of gradient norm."""
    parts = {"classes": "g, of classes", "boxes": "gr, of boxes"}
    found = {name: symbol for name, symbol in parts.items() if name in epochs[-1]["regions"]}
    figure = Figure(figsize=(14.4, 3.8 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 3, squeeze=False)
    titles = {"examples": "share of examples", "weights": "weight of an example", "gradient": "share of the gradient"}
    for axes, (name, symbol) in zip(rows, found.items(), strict=True):
        for one, (kind, title) in zip(axes, titles.items(), strict=True):
            values = np.array([epoch["regions"][name][kind] for epoch in epochs if name in epoch["regions"]]).T
            shown = np.where(values > 0, values, np.nan)
            extent = (epochs[0]["epoch"] - 0.5, epochs[-1]["epoch"] + 0.5, 0, 1)
            image = one.imshow(
                shown, origin="lower", aspect="auto", extent=extent, norm="log", cmap="cividis", interpolation="nearest"
            )
            figure.colorbar(image, ax=one)
            one.set(title=title, xlabel="epoch", ylabel=f"gradient norm {symbol}")
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _figures(gradients: Any, class_names: Sequence[str]) -> dict[str, Figure]:
    made = {}
    if gradients.classes:
        made["figure1"] = _three(gradients.classes)
        made["figure2"] = _distribution(gradients.by_class.sum(0)[None], [""], "g")
        made["figure2_classes"] = _distribution(*_largest(gradients.by_class, class_names), "g")
        if gradients.by_level is not None:
            made["figure2_levels"] = _distribution(gradients.by_level, _levels(gradients.by_level), "g")
        made["figure3"] = _reformulated(gradients.classes)
    if gradients.boxes:
        by_level = gradients.boxes_by_level
        whole = next(iter(gradients.boxes.values())).counts[None] if by_level is None else by_level.sum(0)[None]
        made["figure4"] = _distribution(whole, [""], "gr", log=False)
        if by_level is not None:
            made["figure4_levels"] = _distribution(by_level, _levels(by_level), "gr", log=False)
        made["figure5"] = _by_error(gradients)
    return made


def _three(classes: dict[str, Any]) -> Figure:
    """Figure 1: the distribution, the gradient norms after each loss, and their sums."""
    figure, axes = _row(3, (14.4, 4.2))
    counts = _array(next(iter(classes.values())).counts)
    middle, width = _middles(len(counts)), 1 / len(counts)
    axes[0].bar(middle, _share(counts), width=0.9 * width, color=PALETTE[0])
    axes[0].set(yscale="log", xlabel="gradient norm g", ylabel="share of examples")
    _draw_reformulated(axes[1], classes)
    for (name, seen), look in zip(classes.items(), _looks(), strict=False):
        axes[2].plot(middle, _array(seen.gradient_share), label=name, **look)
    axes[2].set(yscale="log", xlabel="gradient norm g", ylabel="share of the whole gradient")
    axes[2].legend()
    return figure


def _reformulated(classes: dict[str, Any]) -> Figure:
    """Figure 3."""
    figure, [axes] = _row(1, (6.4, 4.4))
    _draw_reformulated(axes, classes)
    axes.set_yscale("log")
    return figure


def _draw_reformulated(axes: Axes, classes: dict[str, Any]) -> None:
    """An example's gradient after each loss, over that of cross-entropy; each with the same sum over all examples."""
    for (name, seen), look in zip(classes.items(), _looks(), strict=False):
        counts, magnitude = _array(seen.counts), _array(seen.magnitude)
        scale = _array(seen.norm).sum() / max(magnitude.sum(), 1e-300)
        norm = np.divide(scale * magnitude, counts, out=np.full_like(magnitude, np.nan), where=counts > 0)
        axes.plot(_middles(len(counts)), norm, label=name, **look)
    axes.set(xlabel="gradient norm g of cross-entropy", ylabel="gradient norm after the loss (equal sums)")
    axes.legend()


def _distribution(parts: Any, names: Sequence[str], symbol: str, log: bool = True) -> Figure:
    """Figures 2 and 4: share of examples by gradient norm, of each part by itself."""
    figure, [axes] = _row(1, (6.4, 4.4))
    for counts, name, look in zip(parts, names, _looks(), strict=False):
        values = _array(counts)
        if values.sum():
            axes.stairs(_share(values), np.linspace(0, 1, len(values) + 1), label=name or None, **look)
    if log:
        axes.set_yscale("log")
    axes.set(xlabel=f"gradient norm {symbol}", ylabel="share of examples", xlim=(0, 1))
    if any(names):
        axes.legend(ncols=2 if len(names) > 4 else 1)
    return figure


def _by_error(gradients: Any) -> Figure:
    """Figure 5: over the error |d| of a box coordinate, its gradient and the sum of all of this error."""
    figure, axes = _row(2, (11.2, 4.4))
    counts, edges = _array(gradients.errors), np.linspace(0, 0.5, 51)
    middle = np.append((edges[1:] + edges[:-1]) / 2, 0.51)
    for (name, sums), look in zip(gradients.by_error.items(), _looks(), strict=False):
        sums, plain = _array(sums), _array(gradients.by_error["SL1"]).sum()
        norm = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        axes[0].plot(middle, norm * plain / max(sums.sum(), 1e-300) * counts.sum(), label=name, **look)
        axes[1].plot(middle, _share(sums), label=name, **look)
    axes[0].set(xlabel="error |d| of a box coordinate", ylabel="gradient norm after the loss (equal sums)")
    axes[1].set(yscale="log", xlabel="error |d|; last, all beyond 0.5", ylabel="share of the whole gradient")
    axes[1].legend()
    return figure


def _largest(by_class: Any, class_names: Sequence[str]) -> tuple[Any, list[str]]:
    """The classes with the most examples of large norm, which are those of objects."""
    objects = by_class[:, by_class.shape[1] // 2 :].sum(1)
    places = objects.argsort(descending=True)[:CLASSES].tolist()
    return by_class[places], [class_names[place] for place in places]


def _levels(parts: Any) -> list[str]:
    return [f"level {number}, the finest" if number == 1 else f"level {number}" for number in range(1, len(parts) + 1)]


def _row(number: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _looks() -> list[dict[str, Any]]:
    number = max(len(PALETTE), CLASSES)
    return [
        {"color": PALETTE[n % len(PALETTE)], "linestyle": LINES[n % len(LINES)], "linewidth": 1.8}
        for n in range(number)
    ]


def _array(values: Any) -> Array:
    return np.asarray(values, dtype=float)


def _share(values: Array) -> Array:
    share = values / max(values.sum(), 1e-300)
    return np.where(share > 0, share, np.nan)


def _middles(number: int) -> Array:
    return (np.arange(number) + 0.5) / number
