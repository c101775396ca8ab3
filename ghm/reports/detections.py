"""What a detector finds and misses: curves, a table of classes, and sheets of the worst images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ghm.reports.figures import PALETTE, STYLE

Image = NDArray[np.uint8]  # (H, W, 3)
Box = Sequence[float]  # x, y, width, height in pixels
MIN_SCORE, PER_IMAGE, IMAGES, CLASSES = 0.05, 20, 8, 10
WIDTH = 14.4  # inches, of a sheet
LEFT_OUT = "Labels for which there is no room are left out."
IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
# Each line tells what it is without its colour, too. Drawn in this order.
LOOKS: dict[str, dict[str, Any]] = {
    "ignored": {"color": "#BBBBBB", "linestyle": (0, (1, 3)), "linewidth": 1.4},
    "right": {"color": "#56B4E9", "linestyle": (0, (1, 1)), "linewidth": 1.2},
    "found": {"color": "#009E73", "linestyle": "-", "linewidth": 1.4},
    "missed": {"color": "#E69F00", "linestyle": (0, (4, 2)), "linewidth": 2.2},
    "wrong": {"color": "#D55E00", "linestyle": (0, (6, 1.5, 1, 1.5)), "linewidth": 2.2},
}
MEANINGS = {
    "found": "true box, found",
    "missed": "true box, missed (class)",
    "right": "detection, right",
    "wrong": "detection, wrong (class and score)",
    "ignored": "crowd, does not count",
}


class Mark(NamedTuple):
    """A box on an image, its label ("" for none), and how its line looks."""

    box: Box
    label: str
    look: dict[str, Any]


class Panel(NamedTuple):
    image: Image
    title: str
    marks: list[Mark]  # whose label comes first gets its place first


def write(judgement: Any, read: Callable[[int], Image], class_names: Sequence[str], folder: Path) -> list[Path]:
    """Write curves, table and sheets of a `ghm.scoring.Judgement` into `folder`; the files' paths.

    `read`: an image by its id, uint8 (H, W, 3). `class_names`: in the order of the category ids.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(judgement.per_class).assign(name=list(class_names))
    names = dict(zip(table["category_id"], legible(class_names), strict=True))
    written = [folder / name for name in ("precision_recall.png", "precision_recall.svg", "per_class.csv")]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "ghm"}):
        figure = precision_recall(judgement, table, names)
        figure.savefig(written[0])
        figure.savefig(written[1], metadata={"Date": None})  # same numbers, same bytes
    table.to_csv(written[2], index=False)
    for file, title, kind, images in (
        ("false_positives.png", "False positives", "wrong detection", judgement.false_positives(min_score=MIN_SCORE)),
        ("misses.png", "Misses", "missed object", judgement.misses(min_score=MIN_SCORE)),
    ):
        panels = [_panel(image, read(image.image_id), names, kind.split()[0]) for image in images[:IMAGES]]
        order = "the highest-scored first" if kind == "wrong detection" else "most missed first"
        title = f"{title}: {len(panels)} of the {len(images)} images with a {kind}, {order}"
        caption = f"Detections of score {MIN_SCORE} or more, the best {PER_IMAGE} of an image, matched at IoU 0.5. "
        caption += LEFT_OUT if panels else "Nothing to show."
        drawn = {mark.look["color"] for panel in panels for mark in panel.marks}
        legend = {MEANINGS[name]: LOOKS[name] for name in MEANINGS if LOOKS[name]["color"] in drawn}
        written.append(_sheet(panels, title if panels else f"No {kind}", caption, legend, folder / file))
    return written


def contact_sheet(
    images: Sequence[Image],
    boxes: Sequence[Sequence[Box]],
    labels: Sequence[Sequence[str]],
    titles: Sequence[str],
    path: Path,
) -> Path:
    """Write up to 16 images with their boxes (x, y, width, height in pixels), a look for each class."""
    known = sorted({label for image in labels[:16] for label in image})
    shown = dict(zip(known, legible(known), strict=True))
    lines = [LOOKS[name]["linestyle"] for name in ("found", "missed", "wrong")]
    looks = {
        name: {"color": PALETTE[n % 6], "linestyle": lines[n // 6 % 3], "linewidth": 1.8}
        for n, name in enumerate(known)
    }
    panels = [
        Panel(image, title, [Mark(box, shown[name], looks[name]) for box, name in zip(drawn, named, strict=True)])
        for image, title, drawn, named in zip(images, legible(titles, 40), boxes, labels, strict=True)
    ][:16]
    title = f"{sum(len(panel.marks) for panel in panels)} true boxes on {len(panels)} images"
    legend = {shown[name]: looks[name] for name in known} if len(known) <= 12 else {}
    return _sheet(panels, title, LEFT_OUT, legend, path)


def precision_recall(judgement: Any, table: pd.DataFrame, names: dict[int, str]) -> Figure:
    """Precision over recall: the classes' mean by IoU threshold, and at IoU 0.5 of the commonest classes."""
    curves, numbers = judgement.precision_recall, judgement.numbers
    figure = Figure(figsize=(12, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(IOUS)))
    for iou, shade in zip(IOUS, shades, strict=True):
        if iou in curves.mean:
            label = f"{numbers[f'AP{round(100 * iou)}']:.2f}  IoU {iou:g}"
            left.plot(curves.recall, curves.mean[iou], color=shade, label=label, linewidth=1.8)
    commonest = table[table["objects"] > 0].sort_values("objects", ascending=False, kind="stable")[:CLASSES]
    for place, row in enumerate(commonest.itertuples(index=False)):
        label = f"{row.AP50:.2f}  {names[row.category_id]} ({row.objects})"
        style = {"color": PALETTE[place % len(PALETTE)], "linestyle": "-" if place < len(PALETTE) else "--"}
        right.plot(curves.recall, curves.per_class[row.category_id], label=label, linewidth=1.8, **style)
    which = f"the {CLASSES} with most objects of {len(table)} classes" if len(table) > CLASSES else "by class"
    for axes, title, head in (
        (left, "Mean of the classes, by IoU threshold", "AP"),
        (right, f"At IoU 0.5, {which}", "AP50  class (objects)"),
    ):
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(title, loc="left", fontsize=11)
        if axes.lines:
            axes.legend(title=head, loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left", fontsize=9)
        else:
            axes.text(0.5, 0.5, "no objects", ha="center", va="center")
    return figure


def legible(names: Sequence[str], length: int = 20) -> list[str]:
    """Names as a figure can show them: cut to `length`; "#n" (from 1) where the font lacks a character.

    matplotlib's `font.family` chooses the font.
    """
    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    shown = []
    for number, name in enumerate((" ".join(name.split()) for name in names), start=1):
        short = name if len(name) <= length else f"{name[: length - 1]}…"
        there = short and all(ord(character) in known for character in short)
        shown.append(short.replace("$", r"\$") if there else f"#{number}")  # a dollar begins no formula
    return shown


def _panel(image: Any, pixels: Image, names: dict[int, str], kind: str) -> Panel:
    """An image's `Mistakes`; `kind`, wrong or missed, is what its title is about and is labelled first."""
    marks: dict[str, list[Mark]] = {name: [] for name in LOOKS}
    for one in image.truths:
        label = names[one.category_id] if one.verdict == "missed" else ""
        marks[one.verdict].append(Mark(one.box, label, LOOKS[one.verdict]))
    found = [one for one in image.found if one.verdict != "ignored"]
    if kind == "wrong" and image.wrong[0] not in found[:PER_IMAGE]:
        found.insert(0, image.wrong[0])
    for one in found[:PER_IMAGE]:
        label = f"{names[one.category_id]} {one.score:.2f}" if one.verdict == "wrong" else ""
        marks[one.verdict].append(Mark(one.box, label, LOOKS[one.verdict]))
    title = f"{len(image.missed)} of {sum(one.verdict != 'ignored' for one in image.truths)} missed"
    if kind == "wrong":
        title = f"{names[image.wrong[0].category_id]} {image.wrong[0].score:.2f}"
        marks[kind][0] = marks[kind][0]._replace(look=LOOKS[kind] | {"linewidth": 3.6})  # the one in the title
    ordered = [*marks.pop(kind), *(mark for others in marks.values() for mark in others)]
    return Panel(pixels, f"{title}  ·  image {image.image_id}", ordered)


def _sheet(panels: list[Panel], title: str, caption: str, legend: dict[str, dict[str, Any]], path: Path) -> Path:
    """Panels, up to four side by side, under title and caption; below them what the lines mean."""
    columns = min(max(len(panels), 2), 4)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    # Inches: room above each image for its title; portraits get narrow rather than tall.
    side, head, foot = WIDTH / columns, 0.8 if caption else 0.5, 0.45 if legend else 0.1
    tall = [0.35 + side * max(min(panel.image.shape[0] / panel.image.shape[1], 1.0) for panel in row) for row in rows]
    height = head + sum(tall) + foot
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=144)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.text(0.1 / WIDTH, 1 - 0.12 / height, title, va="top", fontsize=14)
        figure.text(0.1 / WIDTH, 1 - 0.48 / height, caption, va="top", fontsize=10, color="#444444")
        if legend:
            lines = [Line2D([], [], **look) for look in legend.values()]
            figure.legend(lines, list(legend), loc="lower left", ncols=6, handlelength=3.4, borderpad=0.3)
        top = height - head
        for row, cell in zip(rows, tall, strict=True):
            top -= cell
            for place, panel in enumerate(row):
                corner = ((place * side + 0.1) / WIDTH, (top + 0.1) / height)
                axes = figure.add_axes((*corner, (side - 0.2) / WIDTH, (cell - 0.35) / height), anchor="NW")
                _draw(axes, panel, renderer)
        figure.savefig(path)
    return path


def _draw(axes: Axes, panel: Panel, renderer: Any) -> None:
    high, wide = panel.image.shape[:2]
    axes.imshow(panel.image, extent=(0, wide, high, 0))
    axes.set_axis_off()
    axes.set_title(panel.title, loc="left", fontsize=10, pad=4)
    axes.apply_aspect()  # now the axes are where the image is
    for (x, y, width, height), _, look in reversed(panel.marks):
        halo = patheffects.withStroke(linewidth=look["linewidth"] + 1.0, foreground="black", alpha=0.4)
        axes.add_patch(Rectangle((x, y), width, height, fill=False, path_effects=[halo], **look))
    taken: list[Any] = []
    for mark in panel.marks:
        if mark.label:
            _write_label(axes, mark, (wide, high), taken, renderer)


def _write_label(axes: Axes, mark: Mark, size: tuple[int, int], taken: list[Any], renderer: Any) -> None:
    """At the first place around the box that is free and on the image, which is then `taken`; else nowhere."""
    (x, y, width, height), label, look = mark
    left, right = np.clip((x, x + width), 0, size[0])
    top, bottom = np.clip((y, y + height), 0, size[1])
    dark = np.dot(to_rgb(look["color"]), (0.3, 0.59, 0.11)) < 0.55
    text = axes.text(left, top, label, fontsize=8, color="white" if dark else "black")
    text.set_bbox({"facecolor": look["color"], "edgecolor": "none", "pad": 1.2})
    places = [(left, top, "left", "bottom"), (left, bottom, "left", "top"), (right, top, "right", "bottom")]
    places += [(right, bottom, "right", "top"), (left, top, "left", "top"), (right, bottom, "right", "bottom")]
    for x, y, ha, va in places:
        text.set(position=(x, y), ha=ha, va=va)
        extent, room = text.get_window_extent(renderer).padded(3), axes.bbox.padded(4)
        on_image = room.contains(*extent.min) and room.contains(*extent.max)
        if on_image and not any(extent.overlaps(other) for other in taken):
            taken.append(extent)
            return
    text.remove()
