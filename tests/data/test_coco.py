"""COCO-format folders: what is read from them, when, and how they are laid out."""

import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from ghm import data
from ghm.data import annotations
from ghm.scoring import score
from ghm.settings import targets
from tests.coco import CONTENT, LACKING, changed, save, write_content


@pytest.fixture
def write(tmp_path):
    """Writes a folder and returns its path; what is given stands in for the good content."""
    return lambda **contents: write_content(tmp_path / "set", **contents)


@pytest.fixture(scope="module")
def flip():
    return targets.call({"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.5})


def coco_folder(root, **settings):
    """These small folders hold the same images in both splits."""
    return data.coco_folder(root, **{"allow_overlap": True} | settings)


def item(dataset, image_id, seed=None):
    index = dataset.image_ids.index(image_id)
    return dataset[index if seed is None else (index, seed)]


# Reading


def test_categories_become_labels_in_the_order_of_their_ids(write):
    train, val = coco_folder(write())
    assert train.category_ids == val.category_ids == [4, 17, 90]
    assert train.class_names == ["cat", "dog", "kite"]
    assert train.num_classes == 3


def test_a_target_holds_corners_labels_crowds_and_the_image_id(write):
    image, target = item(coco_folder(write()).val, 7)
    assert image.shape == (3, 30, 40)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert target.keys() == {"boxes", "labels", "crowds", "image_id"}
    assert target["boxes"].tolist() == [[1.5, 2, 11.5, 22], [20, 5, 28, 13]]
    assert target["labels"].tolist() == [2, 0]
    assert target["crowds"].tolist() == [[0, 0, 40, 30]]
    assert target["image_id"].item() == 7
    for name, kind in (("boxes", torch.float32), ("crowds", torch.float32), ("labels", torch.int64)):
        assert target[name].dtype == kind
    assert all(type(value) is torch.Tensor for value in (image, *target.values()))


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_an_image_without_boxes_is_kept_with_an_empty_target(write, flip, seed):
    dataset = coco_folder(write(), augment=flip).train
    dataset.masks = True
    image, target = item(dataset, 3, seed)
    assert image.shape == (3, 50, 20)  # grey in the file, three channels here
    shapes = {"boxes": (0, 4), "crowds": (0, 4), "labels": (0,), "masks": (0, 50, 20), "image_id": ()}
    assert {name: tuple(value.shape) for name, value in target.items()} == shapes
    assert target["labels"].dtype == torch.int64


def test_images_come_in_the_order_of_their_ids(write):
    dataset = coco_folder(write()).val
    assert [dataset[i][1]["image_id"].item() for i in range(len(dataset))] == [3, 7]
    assert dataset.is_wide == [False, True]


def test_pixels_are_those_of_the_file(write):
    shown = coco_folder(write()).val.pixels(7)
    assert (shown.shape, str(shown.dtype), shown[5, 9].tolist()) == ((30, 40, 3), "uint8", [255, 0, 51])


def test_train_is_flipped_at_times_and_val_never(write, flip):
    train, val = coco_folder(write(), augment=flip)
    for split, number in ((train, 2), (val, 1)):
        seen = {tuple(item(split, 7, seed)[1]["boxes"][0].tolist()) for seed in range(20)}
        assert len(seen) == number
        assert seen <= {(1.5, 2, 11.5, 22), (28.5, 2, 38.5, 22)}


def test_a_crowd_counts_in_scoring_as_coco_wants_it(write):
    coco = coco_folder(write()).val.coco
    found = [
        {"image_id": 7, "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9}
        for a in CONTENT["annotations"]
        if not a["iscrowd"]
    ]
    inside_crowd = {"image_id": 7, "category_id": 4, "bbox": [2, 20, 9, 9], "score": 0.99}
    assert score(coco, [*found, inside_crowd])["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "change", [{"area": LACKING}, {"iscrowd": LACKING}, {"area": None}, {"iscrowd": None}, {"id": 0}]
)
def test_what_scoring_needs_is_completed(write, change):
    coco = coco_folder(write(val=changed("annotations", 2, **change))).val.coco
    found = [{"image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8], "score": 0.9}]
    assert score(coco, found)["AP50"] == pytest.approx(0.5)  # one of two categories is found


# Refusing


def test_no_folder_is_refused():
    with pytest.raises(ValueError, match=r"^data.root=null: names no folder; .*, or set GHM_DATA"):
        coco_folder(None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("images", 1, file_name="lost.jpg"), "image 3 lists file_name='lost.jpg'"),
        (changed("images", 1, file_name="deep"), "image 3 lists file_name='deep'"),
        (changed("annotations", 2, bbox=[1, 1, 0, 5]), "annotation 14: bbox=[1, 1, 0, 5] has no area"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_bad_annotations_of_either_file_are_refused(write, content, said, split):
    root = write(**{split: content})
    with pytest.raises(ValueError, match=re.escape(f"{root}/annotations/instances_{split}.json: {said}")):
        coco_folder(root)


def test_faulty_boxes_are_left_out_of_train_and_val_where_that_is_wanted(write, caplog):
    bad = changed("annotations", 2, bbox=[1, 1, 0, 5])
    for split in coco_folder(write(train=bad, val=bad), invalid="drop"):
        assert sorted(split.coco.anns) == [11, 12]
        assert item(split, 7)[1]["labels"].tolist() == [2]
    said = [message.split(": ")[0].split("_")[-1] for message in caplog.messages if "left out" in message]
    assert said == ["train.json", "val.json"]


def test_training_images_without_a_box_are_left_out_where_that_is_wanted(write):
    root = write()
    kept, (train, val) = coco_folder(root), coco_folder(root, empty="drop")
    assert train.image_ids == [number for number in kept.train.image_ids if kept.train.coco.imgToAnns[number]]
    assert len(train) < len(kept.train)
    assert val.image_ids == kept.val.image_ids
    with pytest.raises(ValueError, match=r"^empty=no: must be keep or drop"):
        coco_folder(root, empty="no")


def test_a_category_of_two_names_is_refused(write):
    renamed = [{"id": 90, "name": "cat"}, {"id": 4, "name": "kite"}, {"id": 17, "name": "dog"}]
    root = write(val=CONTENT | {"categories": renamed})
    with pytest.raises(ValueError, match=f"^data.root={root}: category 90 is 'kite' in .* and 'cat' in .*number the"):
        coco_folder(root)


def test_train_and_val_share_the_categories_that_either_lists(write):
    fewer = [category for category in CONTENT["categories"] if category["id"] != 17]
    for train, val in (
        coco_folder(write(val=CONTENT | {"categories": fewer})),
        coco_folder(write(train=CONTENT | {"categories": fewer})),
    ):
        assert train.category_ids == val.category_ids == [4, 17, 90]
        assert train.class_names == val.class_names == ["cat", "dog", "kite"]


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_annotation_file_is_named(write, missing):
    root = write()
    Path(root, "annotations", f"instances_{missing}.json").unlink()
    with pytest.raises(ValueError, match=f"^data.root={root}: no annotations/instances_{missing}.json there"):
        coco_folder(root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^data.root=.*nowhere: no annotations/instances_train.json there"):
        coco_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", [lambda data: b"no image", lambda data: b"", lambda data: data[:20]])
def test_what_is_no_image_is_refused_before_training(write, damage):
    root = write()
    file = Path(root, "images", "seven.png")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"^{file}: image 7: not a usable image"):
        coco_folder(root)


def test_an_image_of_another_size_is_refused_before_training(write):
    root = write(val=changed("images", 1, width=21))
    with pytest.raises(ValueError, match=f"^{root}/images/deep/three.jpg: image 3: .* 20 x 50 .* says 21 x 50"):
        coco_folder(root)


def test_a_truncated_image_is_named_when_it_is_read(write):
    root = write()
    file = Path(root, "images", "seven.png")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    dataset = coco_folder(root).val
    with pytest.raises(ValueError, match=f"^{file}: image 7: not a usable image"):
        item(dataset, 7)


# Once in a process


def test_a_file_is_checked_once_until_it_changes(write, monkeypatch):
    read = Mock(wraps=annotations.read)
    monkeypatch.setattr(annotations, "read", read)
    root = write()
    first, second = coco_folder(root), coco_folder(root, label_noise=0.5)
    assert first.val.coco is second.val.coco
    assert read.call_count == 2
    coco_folder(root, invalid="drop")
    assert read.call_count == 4


@pytest.mark.parametrize(("name", "later"), [("bird", 1), ("albatross", 0)], ids=["same length", "same time"])
def test_a_changed_file_is_read_again(write, name, later):
    root = write()
    assert coco_folder(root).train.class_names[2] == "kite"
    for split in ("train", "val"):
        file = Path(root, "annotations", f"instances_{split}.json")
        time = file.stat().st_mtime_ns
        save(file, changed("categories", 0, name=name))
        os.utime(file, ns=(time, time + later))
    assert [split.class_names[2] for split in coco_folder(root)] == [name, name]


def test_a_folder_of_ones_own_may_name_its_files_as_it_likes(write):
    root = write()
    for split in ("train", "val"):
        file = Path(root, "annotations", f"instances_{split}.json")
        file.rename(file.with_name(f"instances_{split}_small.json"))
    assert [len(split) for split in coco_folder(root, train="train_small", val="val_small")] == [2, 2]
    assert json.loads(Path(root, "annotations", "instances_val_small.json").read_text()) == CONTENT
