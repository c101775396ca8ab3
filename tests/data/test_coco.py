"""COCO-format folders: what is read from a good one, and what is said about a bad one."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from ghm.data import coco_folder
from ghm.evaluate import score

# Real data lies beside the checkout where the project is developed, and nowhere else.
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

# Ids with gaps, out of order; image 7 has a crowd beside a box, image 3 nothing.
CONTENT = {
    "images": [
        {"id": 7, "file_name": "seven.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "deep/three.jpg", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 10, 20], "area": 200, "iscrowd": 0},
        {
            "id": 12,
            "image_id": 7,
            "category_id": 4,
            "bbox": [0, 0, 40, 30],
            "area": 1200,
            "iscrowd": 1,
            "segmentation": {"size": [30, 40], "counts": [0, 1200]},
        },
        {"id": 14, "image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8], "area": 64, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "kite"}, {"id": 4, "name": "cat"}, {"id": 17, "name": "dog"}],
}


@pytest.fixture
def write(tmp_path):
    """Writes a folder and returns its path; what is given stands in for the good content of train."""
    root = tmp_path / "set"

    def write(train=CONTENT, val=CONTENT):
        (root / "images" / "deep").mkdir(parents=True, exist_ok=True)
        (root / "annotations").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (255, 0, 51)).save(root / "images" / "seven.png")
        Image.new("L", (20, 50), 128).save(root / "images" / "deep" / "three.jpg")
        for split, content in (("train", train), ("val", val)):
            text = content if isinstance(content, str) else json.dumps(content)
            (root / "annotations" / f"instances_{split}.json").write_text(text)
        return str(root)

    return write


def changed(kind, place, **values):
    """The good content with an entry changed; a value of None removes the key."""
    content = copy.deepcopy(CONTENT)
    entry = content[kind][place]
    entry.update(values)
    for name in [name for name, value in values.items() if value is None]:
        del entry[name]
    return content


# Reading


def test_categories_become_labels_in_the_order_of_their_ids(write):
    train, val = coco_folder(write())
    assert train.category_ids == val.category_ids == [4, 17, 90]
    assert train.class_names == ["cat", "dog", "kite"]
    assert train.num_classes == 3


def test_a_target_holds_corners_labels_and_the_image_id(write):
    dataset = coco_folder(write()).val
    image, target = dataset[dataset.image_ids.index(7)]
    assert image.shape == (3, 30, 40)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    # The crowd is no target.
    assert target["boxes"].tolist() == [[1.5, 2, 11.5, 22], [20, 5, 28, 13]]
    assert target["labels"].tolist() == [2, 0]
    assert target["image_id"].item() == 7


def test_an_image_without_boxes_has_an_empty_target(write):
    dataset = coco_folder(write()).val
    image, target = dataset[dataset.image_ids.index(3)]
    assert image.shape == (3, 50, 20)  # grey in the file, three channels here
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype == torch.int64


def test_images_come_in_the_order_of_their_ids(write):
    dataset = coco_folder(write()).val
    assert [dataset[i][1]["image_id"].item() for i in range(len(dataset))] == [3, 7]


def test_train_is_flipped_at_times_and_val_never(write):
    data = coco_folder(write())
    for split, number in ((data.train, 2), (data.val, 1)):
        torch.manual_seed(0)
        seen = {tuple(split[1][1]["boxes"][0].tolist()) for _ in range(20)}
        assert len(seen) == number
        assert seen <= {(1.5, 2, 11.5, 22), (28.5, 2, 38.5, 22)}


def test_an_image_without_boxes_is_flipped_without_complaint(write):
    dataset = coco_folder(write()).train
    assert all(dataset[0][1]["boxes"].shape == (0, 4) for _ in range(10))


def test_a_crowd_counts_in_scoring_as_coco_wants_it(write):
    coco = coco_folder(write()).val.coco
    found = [
        {"image_id": 7, "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9}
        for a in CONTENT["annotations"]
        if not a["iscrowd"]
    ]
    inside_crowd = {"image_id": 7, "category_id": 4, "bbox": [2, 20, 9, 9], "score": 0.99}
    assert score(coco, [*found, inside_crowd])["AP"] == pytest.approx(1.0)


# Refusing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"annotations": []}, "instances_train.json: 2 images, 0 boxes"),
        (CONTENT | {"images": []}, "instances_train.json: 0 images, 3 boxes"),
        (changed("images", 1, file_name="lost.jpg"), "instances_train.json: image 3 lists file_name=lost.jpg"),
        (changed("images", 1, file_name="deep"), "instances_train.json: image 3 lists file_name=deep"),
        (changed("annotations", 2, image_id=8), "instances_train.json: annotation 14: image_id=8 is not among"),
        (changed("annotations", 2, category_id=5), "instances_train.json: annotation 14: category_id=5 is not among"),
        *(
            (
                changed("annotations", 2, bbox=bbox),
                r"instances_train.json: annotation 14: bbox=\[.*\] (has no area|is not x, y, width, height)",
            )
            for bbox in (
                [1, 1, 0, 5],
                [1, 1, 5, 0],
                [1, 1, -5, 5],
                [1, 1, math.nan, 5],
                [math.nan, 1, 5, 5],
                [1, math.inf, 5, 5],
            )
        ),
        (json.dumps(CONTENT)[:-40], "instances_train.json: not a COCO instances file"),
        ("", "instances_train.json: not a COCO instances file"),
        ("[]", "instances_train.json: not a COCO instances file"),
        *(
            ({key: value for key, value in CONTENT.items() if key != missing}, f"not a COCO instances file .*{missing}")
            for missing in CONTENT
        ),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_bad_annotations_are_refused_with_file_and_entry(write, content, message, split):
    root = write(**{split: content})
    with pytest.raises(ValueError, match=message.replace("train", split)) as refusal:
        coco_folder(root)
    assert root in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("annotations", 2, id=None), "instances_train.json: annotation None"),
        (changed("annotations", 2, image_id=None), "instances_train.json: annotation 14"),
        (changed("annotations", 2, category_id=None), "instances_train.json: annotation 14"),
        (changed("annotations", 2, bbox=None), "instances_train.json: annotation 14"),
        (changed("annotations", 2, bbox=[1, 2, 3]), "instances_train.json: annotation 14"),
        (changed("annotations", 2, bbox=["1", 2, 3, 4]), "instances_train.json: annotation 14"),
        (changed("annotations", 2, bbox=[1, 1, math.inf, 5]), "instances_train.json: annotation 14"),
        (changed("images", 1, file_name=None), "instances_train.json: image 3"),
        (changed("images", 1, id=None), "instances_train.json: image"),
        (changed("categories", 1, name=None), "instances_train.json"),
    ],
)
def test_incomplete_entries_are_refused_with_file_and_entry(write, content, message):
    with pytest.raises(ValueError, match=message):
        coco_folder(write(train=content))


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_annotations_without_area_or_crowd_flag_are_refused_or_scored(write, key):
    try:
        coco = coco_folder(write(val=changed("annotations", 2, **{key: None}))).val.coco
    except ValueError as refusal:
        if "instances_val.json: annotation 14" not in str(refusal):
            raise
        return
    found = [{"image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8], "score": 0.9}]
    assert score(coco, found)["AP50"] == pytest.approx(0.5)  # one of two categories is found


def test_an_annotation_with_id_zero_is_refused_or_can_be_found(write):
    content = changed("annotations", 2, id=0)
    try:
        coco = coco_folder(write(val=content)).val.coco
    except ValueError:
        return
    found = [{"image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8], "score": 0.9}]
    assert score(coco, found)["AP50"] == pytest.approx(0.5)  # one of two categories is found


def test_annotations_that_share_an_id_are_refused(write):
    with pytest.raises(ValueError, match=r"instances_train.json: annotation 11"):
        coco_folder(write(train=changed("annotations", 2, id=11)))


def test_train_and_val_must_list_the_same_categories(write):
    other = CONTENT | {"categories": [*CONTENT["categories"], {"id": 91, "name": "fish"}]}
    with pytest.raises(ValueError, match="train and val list different categories"):
        coco_folder(write(val=other))


def test_train_and_val_must_give_categories_the_same_names(write):
    renamed = CONTENT | {
        "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "kite"}, {"id": 17, "name": "dog"}]
    }
    with pytest.raises(ValueError, match="train and val list different categories"):
        coco_folder(write(val=renamed))


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_annotation_file_is_named(write, missing):
    root = write()
    Path(root, "annotations", f"instances_{missing}.json").unlink()
    with pytest.raises(ValueError, match=f"^data.root={root}: no annotations/instances_{missing}.json there"):
        coco_folder(root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^data.root=.*nowhere: no annotations/instances_train.json there"):
        coco_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no image", lambda data: b""])
def test_an_unreadable_image_is_named(write, damage):
    root = write()
    file = Path(root, "images", "seven.png")
    file.write_bytes(damage(file.read_bytes()))
    dataset = coco_folder(root).val
    with pytest.raises(ValueError, match=f"^{file}: not a readable image"):
        dataset[dataset.image_ids.index(7)]


# Real data


def shared(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs shared/data/{name} beside the checkout")
    return coco_folder(str(SHARED / name))


def test_bccd_is_read():
    train, val = shared("bccd")
    assert (len(train), len(val)) == (280, 69)
    assert train.class_names == ["RBC", "WBC", "Platelets"]
    for split in (train, val):
        image, target = split[0]
        assert image.shape == (3, 240, 320)
        assert target["boxes"].shape == (len(target["labels"]), 4)
        assert len(target["labels"]) > 0
    assert sum(len(val[i][1]["labels"]) for i in range(len(val))) == 938


def targets_of(split):
    """All targets of a data set; blank images stand in for the files, which take seconds to read."""
    split.read = lambda entry: torch.zeros(3, entry["height"], entry["width"], dtype=torch.uint8)
    return [split[i][1] for i in range(len(split))]


def test_coco_mini_is_read_with_its_crowds_and_gaps():
    train, val = shared("coco_mini")
    assert (len(train), len(val)) == (47, 57)
    for split, boxes, crowds in ((train, 524, 6), (val, 517, 7)):
        entry = split.coco.imgs[split.image_ids[0]]
        assert split[0][0].shape == (3, entry["height"], entry["width"])
        assert split.num_classes == 80
        assert (split.category_ids[0], split.category_ids[-1]) == (1, 90)
        targets = targets_of(split)
        assert sum(len(target["labels"]) for target in targets) == boxes - crowds
        assert max(int(label) for target in targets for label in target["labels"]) < 80
    assert {58636, 226111} <= {int(target["image_id"]) for target in targets if not len(target["labels"])}


def test_coco_minis_own_boxes_score_full_marks_with_its_crowds():
    val = shared("coco_mini").val
    found = []
    for target in targets_of(val):
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": int(target["image_id"]), "category_id": val.category_ids[label], "bbox": box})
    assert score(val.coco, [detection | {"score": 0.9} for detection in found])["AP"] == pytest.approx(1.0)
