"""Well-formed data whose numbers would be worth nothing, and what other tools write in other ways than COCO."""

import json
import math

import pytest
from PIL import Image

from ghm.data import coco_folder
from tests.data.folders import CATEGORIES, SIZE, both, drawn, write


def each(content):
    return content["annotations"]


# The same images in train and val


def test_one_image_in_train_and_val_is_refused(tmp_path):
    root = both(tmp_path)
    val = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    val["images"][2]["file_name"] = "train_005.png"
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(val))
    with pytest.raises(ValueError, match=r"1 images of val are in train too \(first: .*train_005.png.*allow_overlap="):
        coco_folder(root)
    assert [len(split) for split in coco_folder(root, allow_overlap=True)] == [8, 4]


def test_the_same_bytes_under_another_name_are_refused(tmp_path):
    root = both(tmp_path)
    copied = (tmp_path / "images/train_003.png").read_bytes()
    (tmp_path / "images/val_004.png").write_bytes(copied)
    with pytest.raises(ValueError, match=r"1 images of val .*val_004.png is .*train_003.png"):
        coco_folder(root)


def test_images_that_are_equal_in_size_and_end_alone_are_told_apart(tmp_path):
    root = both(tmp_path)
    for name, start in (("train_003", 1), ("val_004", 2)):
        image = Image.new("RGB", SIZE, (start, 0, 0))
        image.putpixel((0, 0), (0, start, 0))
        image.save(tmp_path / "images" / f"{name}.bmp")
        (tmp_path / "images" / f"{name}.png").unlink()
        (tmp_path / "images" / f"{name}.bmp").rename(tmp_path / "images" / f"{name}.png")
    assert len(coco_folder(root).val) == 4


def test_one_file_for_both_is_refused(tmp_path):
    write(tmp_path, "annotations/instances_default.json", *drawn("train"), "images")
    both_ways = dict.fromkeys(("train", "val"), "annotations/instances_default.json")
    with pytest.raises(ValueError, match=r"instances_default.json is both train and val; .*val_share=0.2, or .*allow"):
        coco_folder(str(tmp_path), **both_ways)
    assert len(coco_folder(str(tmp_path), **both_ways, allow_overlap=True).val) == 8


# Boxes of another kind


def as_fractions(content):
    for a in each(content):
        x, y, width, height = a["bbox"]
        a["bbox"] = [x / SIZE[0], y / SIZE[1], width / SIZE[0], height / SIZE[1]]


def as_corners(content):
    for a in each(content):
        x, y, width, height = a["bbox"]
        a["bbox"] = [x, y, x + width, y + height]


def as_corners_near_the_origin(content):
    for a in each(content):
        x, y, width, height = a["bbox"]
        a["bbox"] = [x / 4, y / 4, x / 4 + width, y / 4 + height]


@pytest.mark.parametrize("invalid", ["error", "drop"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_fractions, r"its 16 boxes are fractions of the image \(first: annotation 1: .*; write x, y, width"),
        (as_corners, r"its 16 boxes are corners x1, y1, x2, y2 \(first: annotation 1: .*: x1, y1, x2 - x1, y2 - y1"),
        (as_corners_near_the_origin, r"its 16 boxes are corners x1, y1, x2, y2"),
    ],
)
def test_boxes_of_another_kind_are_refused(tmp_path, change, said, invalid):
    with pytest.raises(ValueError, match=said):
        coco_folder(both(tmp_path, change), invalid=invalid)


def whole_image(content):
    for a in each(content):
        a["bbox"] = [0, 0, *SIZE]


def large_in_the_middle(content):
    for number, a in enumerate(each(content)):
        margin = 5 + number
        a["bbox"] = [margin, margin / 2, SIZE[0] - 2 * margin, SIZE[1] - margin]


def one_pixel(content):
    for a in each(content):
        a["bbox"] = [0, 0, 1, 1]


@pytest.mark.parametrize("change", [whole_image, large_in_the_middle, one_pixel, lambda content: None])
def test_large_and_tiny_boxes_are_no_corners_or_fractions(tmp_path, change):
    assert len(coco_folder(both(tmp_path, change)).train.coco.anns) == 16


# Said once, with count and first example


def boxes_twice(content):
    content["annotations"] += [a | {"id": 900 + a["id"]} for a in each(content)]


def image_twice(content):
    content["images"].append(content["images"][0] | {"id": 99})


def one_name(content):
    content["categories"] = [{"id": 1, "name": "nut"}, {"id": 2, "name": "nut"}]


def above_all(content):
    content["categories"] = [{"id": 0, "name": "parts", "supercategory": "none"}, *CATEGORIES]


def ids_as_text(content):
    for a in each(content):
        a["category_id"] = f" {a['category_id']}.0"
        a["image_id"] = str(a["image_id"])


def ids_as_floats(content):
    for entry in content["images"] + content["categories"]:
        entry["id"] = float(entry["id"])


def no_crowd_flags(content):
    for number, a in enumerate(each(content)):
        if number % 2:
            a["iscrowd"] = None
        else:
            del a["iscrowd"]


def no_sizes(content):
    for number, image in enumerate(content["images"]):
        image["width"] = None
        if number % 2:
            del image["height"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (boxes_twice, "the same box of the same class twice on an image (16; first: annotations 1 and 901 on image 1)"),
        (image_twice, "images listed twice (1; first: 1 and 99 are both 'train_001.png')"),
        (one_name, "two categories of one name (1; first: 1 and 2 are both 'nut')"),
        (above_all, "categories that no box has, each a class that is never seen (1; first: 0 'parts')"),
        (ids_as_text, "whole numbers written as text or as 1.0 (32; first: annotation 1: image_id='1')"),
        (ids_as_floats, "whole numbers written as text or as 1.0 (10; first: category 1.0: id=1.0)"),
        (no_crowd_flags, "no iscrowd, read as 0 (16; first: annotation 1)"),
        (no_sizes, "width and height read from the image (8; first: image 1: 'train_001.png')"),
    ],
)
def test_what_is_odd_is_said_once(tmp_path, caplog, change, said):
    root = both(tmp_path, change)
    train, _ = coco_folder(root)
    coco_folder(root)
    assert sum(message.endswith(said) and "instances_val" not in message for message in caplog.messages) == 1
    assert {type(number) for number in (*train.coco.imgs, *train.coco.cats, *train.category_ids)} == {int}
    assert train[0][1]["boxes"].shape == (4 if change is boxes_twice else 2, 4)


def test_sound_data_is_passed_over_in_silence(tmp_path, caplog):
    coco_folder(both(tmp_path))
    assert caplog.messages == []


def test_a_size_is_read_as_the_image_is_shown(tmp_path):
    root = both(tmp_path, no_sizes)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (SIZE[1], SIZE[0])).save(tmp_path / "images/train_001.png", exif=exif)
    entry = coco_folder(root).train.coco.imgs[1]
    assert (entry["width"], entry["height"]) == SIZE


def test_a_number_that_is_none_stays_refused(tmp_path):
    def fault(content):
        each(content)[3]["image_id"] = "1.5"

    with pytest.raises(ValueError, match=r"annotation 4: image_id='1.5': must be a whole number"):
        coco_folder(both(tmp_path, fault))


# Boxes from segmentations


def runs(box):
    """Run lengths down the columns of a box of whole pixels, as COCO's uncompressed ones."""
    x, y, width, height = box
    counts = [x * SIZE[1] + y]
    for column in range(width):
        counts += [height, SIZE[1] - height if column < width - 1 else SIZE[1] - y - height]
    counts[-1] += (SIZE[0] - x - width) * SIZE[1]
    return {"size": [SIZE[1], SIZE[0]], "counts": counts}


def polygon(box):
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height], [x, y + height, x + 1, y + 1, x + 2, y + 2]]


def compressed(box):
    from pycocotools import mask

    encoded = mask.frPyObjects(runs(box), SIZE[1], SIZE[0])
    return encoded | {"counts": encoded["counts"].decode()}


@pytest.mark.parametrize("outline", [polygon, runs, compressed])
def test_a_missing_box_is_that_around_the_segmentation(tmp_path, caplog, outline):
    boxes = {}

    def without_boxes(content):
        for a in each(content):
            boxes[len(boxes)] = a["bbox"]
            a["segmentation"] = outline(a.pop("bbox"))

    train, _ = coco_folder(both(tmp_path, without_boxes))
    assert [a["bbox"] for a in train.coco.dataset["annotations"]] == [boxes[number] for number in range(16)]
    assert any("no bbox, read from the segmentation (16; first: annotation 1)" in said for said in caplog.messages)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 2, 3]],
        "polygon",
        {"size": [5, 5], "counts": [25]},
        {"size": [72, 96]},
        [["a", "b"]],
        {"size": [72, 96], "counts": [-1, 6913]},
        {"size": [72, 96], "counts": [1, 2]},
        [{"x": 1, "y": 2}],
    ],
)
def test_an_annotation_without_box_and_outline_is_refused(tmp_path, segmentation):
    def fault(content):
        del each(content)[2]["bbox"]
        each(content)[2]["segmentation"] = segmentation

    with pytest.raises(ValueError, match="annotation 3: has no bbox"):
        coco_folder(both(tmp_path, fault))


# Classes and crowds


def test_a_training_split_of_crowds_alone_is_refused(tmp_path):
    def crowds(content):
        for a in each(content):
            a["iscrowd"] = 1

    with pytest.raises(ValueError, match=r"instances_train.json: its 16 boxes are all crowds"):
        coco_folder(both(tmp_path, crowds))


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("train", "classes of val that train has no box of: nothing can learn them (1; first: 2 'nut')"),
        ("val", "classes of train that val has no box of: AP is over the others (1; first: 2 'nut')"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_class_of_one_split_alone_is_said(tmp_path, caplog, lacking, said, listed):
    def drop(content):
        if content["images"][0]["file_name"].startswith(lacking):
            content["annotations"] = [a for a in each(content) if a["category_id"] == 1]
            content["categories"] = CATEGORIES if listed else CATEGORIES[:1]

    train, val = coco_folder(both(tmp_path, drop))
    assert train.class_names == val.class_names == ["bolt", "nut"]
    assert [message.endswith(said) for message in caplog.messages] == [True]


def test_average_precision_is_over_the_classes_that_are_there(tmp_path):
    from ghm.scoring import score

    def drop(content):
        if content["images"][0]["file_name"].startswith("val"):
            content["annotations"] = [a for a in each(content) if a["category_id"] == 1]
            content["categories"] = CATEGORIES[:1]

    coco = coco_folder(both(tmp_path, drop)).val.coco
    found = [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in coco.anns.values()]
    assert math.isclose(score(coco, found)["AP"], 1.0)
