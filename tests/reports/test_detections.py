"""Pictures of what was found and missed: what is drawn, and that it can be read."""

import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ghm.data import shapes
from ghm.data.annotations import index
from ghm.reports import detections as report
from ghm.scoring import judge

BOX, OTHER, CROWD = [10.0, 10.0, 30.0, 30.0], [60.0, 50.0, 30.0, 30.0], [70.0, 0.0, 30.0, 30.0]


def gray(_):
    return np.full((100, 120, 3), 128, dtype=np.uint8)


def scene(images=1, classes=2):
    """`images` images of 120 x 100 pixels: a first class's BOX, a second's OTHER, a CROWD of the first."""
    objects = [(image, *one) for image in range(1, images + 1) for one in ((1, BOX, 0), (2, OTHER, 0), (1, CROWD, 1))]
    return index(
        {
            "images": [{"id": image, "width": 120, "height": 100} for image in range(1, images + 1)],
            "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
            "annotations": [
                {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": 900.0, "iscrowd": crowd}
                for n, (image, category, box, crowd) in enumerate(objects, start=1)
            ],
        }
    )


def seen(category, box, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def write(coco, found, folder, names=None, read=gray):
    names = names or [category["name"] for category in coco.dataset["categories"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return report.write(judge(coco, found), read, names, folder)


@pytest.fixture
def sheets(monkeypatch):
    """Arguments of the sheets that are written, by file name."""
    drawn = {}

    def sheet(panels, title, caption, legend, path):
        drawn[path.name] = (panels, title, caption, legend)
        return path

    monkeypatch.setattr(report, "_sheet", sheet)
    return drawn


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, by file name."""
    saved, save = {}, Figure.savefig

    def keep(figure, path, **options):
        saved[path.name] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def marks(panel, kind):
    return [(list(mark.box), mark.label) for mark in panel.marks if mark.look["color"] == report.LOOKS[kind]["color"]]


# Files


def test_all_files_are_written_and_named(tmp_path):
    data = shapes(1, 6, image_size=64, seed=1).val
    found = [seen(a["category_id"], a["bbox"], 0.9, a["image_id"]) for a in data.coco.dataset["annotations"][::2]]
    found += [seen(1, [0.0, 0.0, 9.0, 9.0], 0.8, image) for image in (2, 3)]

    def read(image_id):
        return data.read(data.coco.imgs[image_id]).permute(1, 2, 0).numpy()

    paths = write(data.coco, found, tmp_path / "new" / "report", read=read)
    assert [path.name for path in paths] == [
        "precision_recall.png",
        "precision_recall.svg",
        "per_class.csv",
        "false_positives.png",
        "misses.png",
    ]
    assert all(path.parent == tmp_path / "new" / "report" and path.stat().st_size for path in paths)
    for path in (paths[0], *paths[3:]):
        assert 1500 < Image.open(path).width < 2200  # sharp on a laptop's screen, and not beyond


def test_the_table_holds_every_class_under_its_full_name(tmp_path):
    write(scene(classes=3), [seen(1, BOX, 0.9)], tmp_path, ["cat, wild", "狗" * 30, "none"])
    table = pd.read_csv(tmp_path / "per_class.csv", keep_default_na=False, na_values={"AP50": [""]})
    assert list(table) == ["category_id", "name", "objects", "AP", "AP50", "AP75", "AR100"]
    assert table["name"].tolist() == ["cat, wild", "狗" * 30, "none"]
    assert table["objects"].tolist() == [1, 1, 0]
    assert table["AP50"].tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)


def test_same_numbers_give_the_same_bytes(tmp_path):
    first, second = (write(scene(), [seen(1, BOX, 0.9)], tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_nothing_of_matplotlibs_settings_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    write(scene(), [seen(1, BOX, 0.9)], tmp_path)
    assert dict(matplotlib.rcParams) == before


# Curves


def test_curves_are_those_of_the_judgement(tmp_path, figures):
    found = [seen(1, BOX, 0.9), seen(2, [62.0, 50.0, 30.0, 30.0], 0.8), seen(2, BOX, 0.85)]  # IoU 0.875
    write(scene(), found, tmp_path)
    left, right = figures["precision_recall.png"].axes
    curves = judge(scene(), found).precision_recall
    for line, iou in zip(left.lines, (0.5, 0.6, 0.7, 0.75, 0.8, 0.9), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curves.mean[iou])
        np.testing.assert_array_equal(line.get_xdata(), curves.recall)
    labels = [line.get_label() for line in left.lines]
    assert labels[0] == "0.75  IoU 0.5"
    assert labels[-2:] == ["0.75  IoU 0.8", "0.50  IoU 0.9"]
    for line, category in zip(right.lines, (1, 2), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), curves.per_class[category])
    assert [line.get_label() for line in right.lines] == ["1.00  class 1 (1)", "0.50  class 2 (1)"]


def test_only_the_ten_classes_with_most_objects_have_curves_told_apart(tmp_path, figures):
    coco = scene(classes=14)
    for number, category in enumerate([3] * 3 + [14] * 2 + list(range(4, 14)), start=10):
        one = {"id": number, "image_id": 1, "category_id": category, "bbox": OTHER, "area": 900.0, "iscrowd": 0}
        coco.dataset["annotations"].append(one)
    write(index(coco.dataset), [], tmp_path)
    _, right = figures["precision_recall.png"].axes
    shown = [line.get_label().split("  ")[1] for line in right.lines]
    assert shown[:3] == ["class 3 (3)", "class 14 (2)", "class 1 (1)"]
    assert len(shown) == len({(line.get_color(), line.get_linestyle()) for line in right.lines}) == 10
    assert right.get_title(loc="left") == "At IoU 0.5, the 10 with most objects of 14 classes"


def test_without_objects_the_curves_say_so(tmp_path, figures):
    coco = scene()
    coco.dataset["annotations"] = [one for one in coco.dataset["annotations"] if one["iscrowd"]]
    write(index(coco.dataset), [], tmp_path)
    assert [axes.texts[0].get_text() for axes in figures["precision_recall.svg"].axes] == ["no objects"] * 2


# Sheets


def test_marks_tell_the_verdicts(tmp_path, sheets):
    found = [
        seen(1, BOX, 0.9),
        seen(1, OTHER, 0.876),
        seen(2, BOX, 0.5),
        seen(1, [72.0, 2.0, 9.0, 9.0], 0.3),
        seen(2, [0.0, 90.0, 5.0, 5.0], 0.04),
    ]
    write(scene(), found, tmp_path)
    for file, best, title in (
        ("false_positives.png", "wrong", "class 1 0.88  ·  image 1"),
        ("misses.png", "missed", "1 of 2 missed  ·  image 1"),
    ):
        [panel], _, caption, legend = sheets[file]
        assert marks(panel, "right") == [(BOX, "")]
        assert marks(panel, "wrong") == [(OTHER, "class 1 0.88"), (BOX, "class 2 0.50")]
        assert marks(panel, "found") == [(BOX, "")]
        assert marks(panel, "missed") == [(OTHER, "class 2")]
        assert marks(panel, "ignored") == [(CROWD, "")]  # the crowd, not the detection in it
        assert panel.marks[0].look["color"] == report.LOOKS[best]["color"]
        assert panel.title == title
        thick = [mark.look["linewidth"] > report.LOOKS["wrong"]["linewidth"] for mark in panel.marks]
        assert thick == [file == "false_positives.png"] + [False] * (len(thick) - 1)  # the title's
        assert "0.05" in caption
        assert "20" in caption
        assert set(legend) == set(report.MEANINGS.values())


def test_each_verdict_has_a_line_of_its_own():
    for key in ("color", "linestyle"):
        assert len({str(look[key]) for look in report.LOOKS.values()}) == len(report.LOOKS) == len(report.MEANINGS)


def test_the_worst_eight_images_come_first_and_only_they_are_read(tmp_path, sheets):
    read = []
    found = [seen(2, BOX, image / 100, image) for image in range(1, 13)]
    write(scene(images=12), found, tmp_path, read=lambda image: read.append(image) or gray(image))
    panels, title, *_ = sheets["false_positives.png"]
    assert [panel.title.split()[-1] for panel in panels] == [str(image) for image in range(12, 4, -1)]
    # Below 0.05 nothing counts.
    assert title == "False positives: 8 of the 8 images with a wrong detection, the highest-scored first"
    assert sheets["misses.png"][1] == "Misses: 8 of the 12 images with a missed object, most missed first"
    assert len(read) == 16


def test_of_many_detections_the_best_twenty_are_drawn_and_the_wrong_one_of_the_title(tmp_path, sheets):
    coco = scene()
    for number in range(25):
        box = [4.0 * number, 90.0, 3.0, 3.0]
        one = {"id": 10 + number, "image_id": 1, "category_id": 2, "bbox": box, "area": 9.0, "iscrowd": 0}
        coco.dataset["annotations"].append(one)
    found = [seen(2, [4.0 * n, 90.0, 3.0, 3.0], 0.9 - n / 100) for n in range(25)] + [seen(1, OTHER, 0.06)]
    write(index(coco.dataset), found, tmp_path)
    [panel], *_ = sheets["false_positives.png"]
    assert marks(panel, "wrong") == [(OTHER, "class 1 0.06")]
    assert len(marks(panel, "right")) == 19
    [panel], *_ = sheets["misses.png"]
    assert (len(marks(panel, "wrong")), len(marks(panel, "right"))) == (0, 20)


def test_a_perfect_detector_has_its_pictures_too(tmp_path, figures):
    write(scene(), [seen(1, BOX, 0.9), seen(2, OTHER, 0.9)], tmp_path)
    for file, title in (("false_positives.png", "No wrong detection"), ("misses.png", "No missed object")):
        assert figures[file].texts[0].get_text() == title
        assert not figures[file].axes
        assert not figures[file].legends


def test_a_blind_detector_has_only_misses(tmp_path, sheets):
    write(scene(), [], tmp_path)
    assert sheets["false_positives.png"][:2] == ([], "No wrong detection")
    [panel], _, _, legend = sheets["misses.png"]
    assert panel.title.startswith("2 of 2 missed")
    assert list(legend) == [report.MEANINGS["missed"], report.MEANINGS["ignored"]]


@pytest.mark.parametrize("size", [(60, 80), (80, 40)])
def test_labels_lie_on_the_image_and_on_no_other_label(tmp_path, figures, size):
    rng = np.random.default_rng(0)
    high, wide = size
    boxes = [[*(rng.uniform(-0.1, 0.9, 2) * (wide, high)), *rng.uniform(2, 30, 2)] for _ in range(40)]
    image = np.zeros((high, wide, 3), dtype=np.uint8)
    report.contact_sheet([image] * 3, [boxes] * 3, [["a longer name"] * 40] * 3, ["x"] * 3, tmp_path / "sheet.png")
    figure = figures["sheet.png"]
    for axes in figure.axes:
        image_extent = axes.images[0].get_window_extent()
        extents = [text.get_window_extent() for text in axes.texts]
        assert len(extents) > 3
        for place, extent in enumerate(extents):
            assert image_extent.padded(2).containsx(extent.x0)
            assert image_extent.padded(2).containsx(extent.x1)
            assert image_extent.padded(2).containsy(extent.y0)
            assert image_extent.padded(2).containsy(extent.y1)
            assert not any(extent.overlaps(other) for other in extents[:place])


def test_a_boxs_label_is_beside_it_wherever_it_lies(tmp_path, figures):
    boxes = [[x, y, 20.0, 20.0] for x in (-5.0, 50.0, 105.0) for y in (-5.0, 40.0, 85.0)]
    labels = [f"name {number}" for number in range(len(boxes))]
    report.contact_sheet([gray(0)], [boxes], [labels], [""], tmp_path / "sheet.png")
    [axes] = figures["sheet.png"].axes
    assert [text.get_text() for text in axes.texts] == labels
    for text, (x, y, width, height) in zip(axes.texts, boxes, strict=True):
        left, top = text.get_position()
        assert min(abs(left - x), abs(left - x - width), left, 120 - left) < 1e-9
        assert min(abs(top - y), abs(top - y - height), top, 100 - top) < 1e-9
    drawn = [(*one.get_xy(), one.get_width(), one.get_height()) for one in axes.patches if isinstance(one, Rectangle)]
    assert sorted(drawn) == sorted(map(tuple, boxes))
    assert axes.get_xlim() == (0, 120)
    assert axes.get_ylim() == (100, 0)


def test_a_box_around_the_whole_image_has_its_label_inside(tmp_path, figures):
    report.contact_sheet([gray(0)], [[[-5.0, -5.0, 130.0, 110.0]]], [["name"]], [""], tmp_path / "sheet.png")
    [text] = figures["sheet.png"].axes[0].texts
    assert text.get_position() == (0, 0)


# Contact sheets


@pytest.mark.parametrize("count", [0, 1, 3, 5, 16, 20])
def test_a_contact_sheet_shows_up_to_sixteen_images(tmp_path, figures, count):
    images = [np.full((40 + number, 60, 3), number, dtype=np.uint8) for number in range(count)]
    boxes = [[[5.0, 5.0, 10.0, 10.0]] * (number % 3) for number in range(count)]
    labels = [["cat", "dog"][: len(some)] for some in boxes]
    path = report.contact_sheet(images, boxes, labels, [f"file {n}" for n in range(count)], tmp_path / "sheet.png")
    assert path.is_file()
    figure, shown = figures["sheet.png"], min(count, 16)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"file {n}" for n in range(shown)]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == list(range(shown))
    assert [len(axes.patches) for axes in figure.axes] == [number % 3 for number in range(shown)]
    total = sum(number % 3 for number in range(shown))
    assert figure.texts[0].get_text() == f"{total} true boxes on {shown} images"
    spans = [axes.get_window_extent() for axes in figure.axes]
    assert len({round(span.x0) for span in spans}) == min(shown, 4)
    assert not any(one.overlaps(other) for place, one in enumerate(spans) for other in spans[:place])
    assert all(figure.bbox.contains(*corner) for span in spans for corner in (span.min, span.max))


def test_classes_on_a_contact_sheet_look_alike_everywhere_and_differ(tmp_path, figures):
    names = [f"class {number}" for number in range(12)]
    boxes = [[[5.0, 5.0, 10.0, 10.0]] * 12] * 2
    report.contact_sheet([gray(0)] * 2, boxes, [names, names[::-1]], ["", ""], tmp_path / "sheet.png")
    first, second = (
        [(one.get_edgecolor(), str(one.get_linestyle())) for one in axes.patches] for axes in figures["sheet.png"].axes
    )
    assert first == second[::-1]
    assert len(set(first)) == 12
    [legend] = figures["sheet.png"].legends
    assert {text.get_text() for text in legend.get_texts()} == set(names)


# Names


def test_names_stay_as_they_are_when_they_can():
    assert report.legible(["cat", "wine  glass", "Größe", "кот", "_x"]) == ["cat", "wine glass", "Größe", "кот", "_x"]


def test_names_that_cannot_be_shown_become_legible():
    assert report.legible(["a" * 21, "狗", "", "\x07"]) == ["a" * 19 + "…", "#2", "#3", "#4"]
    assert report.legible(["b" * 20, "c" * 21], 21) == ["b" * 20, "c" * 21]


def test_strange_names_are_drawn_without_a_warning(tmp_path, figures):
    names = ["$\\frac{$", "狗" * 30, *(f"_{'long' * number}\n$x$" for number in range(1, 31))]
    found = [seen(category, BOX, 0.9 - category / 100) for category in range(2, 33)]
    paths = write(scene(classes=32), found, tmp_path, names)
    assert all(path.stat().st_size for path in paths)
    text = figures["misses.png"].axes[0].texts[0]
    assert text.get_text() == r"\$\frac{\$"  # matplotlib draws it with plain dollars
