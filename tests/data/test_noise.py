"""Annotations made wrong on purpose: which, how, and what stays as it was."""

import copy
import math

import numpy as np
import pytest

from ghm.data import coco_folder, shapes
from ghm.data.annotations import index
from ghm.data.noise import noisy
from tests.coco import write_content

SIZE = (200, 120)
COUNT = 2000


def made(classes=4, sides=((8, 14), (60, 40), (30, 90), (180, 20))):
    """2000 boxes over 100 images, every tenth a crowd; of four sizes, at many places."""
    annotations = []
    for number in range(COUNT):
        width, height = sides[number % len(sides)]
        x, y = (number * 37.3) % (SIZE[0] - width), (number * 17.9) % (SIZE[1] - height)
        own = {"id": 3 * number + 2, "image_id": number % 100 + 1, "category_id": 10 + number % classes}
        own |= {"bbox": [x, y, width, height], "area": width * height * 0.7, "iscrowd": int(number % 10 == 9)}
        annotations.append(own | {"segmentation": [[x, y, x + width, y, x, y + height]]})
    images = [{"id": number + 1, "width": SIZE[0], "height": SIZE[1]} for number in range(100)]
    categories = [{"id": 10 + number, "name": str(number)} for number in range(classes)]
    return index({"images": images, "annotations": annotations, "categories": categories})


def wrong(coco, share, seed=0):
    """The changed annotations by their ids."""
    after = noisy(coco, share, seed)
    assert [a["id"] for a in after.dataset["annotations"]] == [a["id"] for a in coco.dataset["annotations"]]
    return {number: now for number, now in after.anns.items() if now != coco.anns[number]}


def overlap(first, second):
    (ax, ay, aw, ah), (bx, by, bw, bh) = first, second
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0) * max(height, 0)
    return shared / (aw * ah + bw * bh - shared)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_about_the_share_asked_for_is_wrong(share, seed):
    objects = COUNT * 0.9
    deviation = math.sqrt(objects * share * (1 - share))
    assert abs(len(wrong(made(), share, seed)) - objects * share) < 4 * deviation


def test_what_is_wrong_at_a_share_is_wrong_in_the_same_way_at_a_larger_one():
    coco = made()
    some, more, most = (wrong(coco, share) for share in (0.1, 0.2, 1))
    assert {number: more[number] for number in some} == some
    assert {number: most[number] for number in more} == more
    assert len(some) < len(more) < len(most) == COUNT * 0.9


def test_the_seed_alone_decides_what_is_wrong():
    assert wrong(made(), 0.3, 5) == wrong(made(), 0.3, 5)
    first, other = wrong(made(), 0.3, 5), wrong(made(), 0.3, 6)
    assert first.keys() != other.keys()
    assert all(first[number]["bbox"] != other[number]["bbox"] for number in first.keys() & other.keys())


def test_a_wrong_annotation_has_another_class_each_as_often():
    coco = made()
    changes = [(coco.anns[n]["category_id"], now["category_id"]) for n, now in wrong(coco, 1).items()]
    assert all(before != after for before, after in changes)
    for before in range(10, 14):
        others = [after for was, after in changes if was == before]
        assert len(set(others)) == 3
        # Each of some 450 is a third: 10 is their standard deviation.
        assert all(abs(others.count(after) - len(others) / 3) < 40 for after in set(others))


def test_wrong_boxes_keep_their_size_and_stay_in_the_image():
    coco = made()
    for number, now in wrong(coco, 1).items():
        x, y, width, height = now["bbox"]
        assert [width, height] == coco.anns[number]["bbox"][2:]
        assert 0 <= x <= SIZE[0] - width
        assert 0 <= y <= SIZE[1] - height


def test_wrong_boxes_overlap_the_true_one_little_where_there_is_room():
    coco, roomy = made(), 0
    for number, now in wrong(coco, 1).items():
        x, y, width, height = true = coco.anns[number]["bbox"]
        if 2 * width > SIZE[0] - width or 2 * height > SIZE[1] - height:
            continue
        roomy += 1
        assert overlap(true, now["bbox"]) < 0.15
        # An outlier near its object, as a careless annotator's: half a side to a side away, both ways.
        assert 0.5 <= abs(now["bbox"][0] - x) / width <= 1.000001
        assert 0.5 <= abs(now["bbox"][1] - y) / height <= 1.000001
    assert roomy > 700


def test_ways_and_directions_and_classes_are_drawn_apart():
    coco = made(classes=3, sides=((4, 4),))
    for annotation in coco.anns.values():
        annotation["bbox"] = [100, 60, 4, 4]  # room all around
    rows = []
    for number, now in wrong(coco, 1).items():
        dx, dy = now["bbox"][0] - 100, now["bbox"][1] - 60
        rows.append([abs(dx), abs(dy), dx > 0, dy > 0, (now["category_id"] - coco.anns[number]["category_id"]) % 3])
    table = np.array(rows, dtype=float)
    # Of 1800 draws: 0.1 is more than four standard deviations.
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.1
    assert table.mean(0) == pytest.approx([3, 3, 0.5, 0.5, 1.5], abs=0.1)


def test_boxes_without_room_are_moved_as_far_as_it_goes():
    coco = made(sides=((150, 100),))
    for number, now in wrong(coco, 1).items():
        for before, after, room in zip(coco.anns[number]["bbox"][:2], now["bbox"][:2], (50, 20), strict=True):
            assert after == (0 if before > room / 2 else room)


@pytest.mark.parametrize("rounding", [0, 1])
def test_boxes_as_large_as_the_image_are_set_at_its_corner(rounding):
    coco, size = made(), [side + 2 * rounding for side in SIZE]
    for annotation in coco.anns.values():
        annotation["bbox"] = [-rounding, -rounding, *size]
    for annotation in noisy(coco, 1, 0).anns.values():
        assert annotation["iscrowd"] or annotation["bbox"] == [0, 0, *size]


def test_the_mask_of_a_wrong_annotation_is_its_box():
    coco = noisy(made(), 1, 0)
    for annotation in coco.dataset["annotations"][:9]:
        x, y, width, height = annotation["bbox"]
        rows, columns = coco.annToMask(annotation).nonzero()
        assert len(rows) == pytest.approx(width * height, rel=0.15)
        assert [columns.min(), rows.min()] == pytest.approx([x, y], abs=1)
        assert [columns.max() + 1, rows.max() + 1] == pytest.approx([x + width, y + height], abs=1)


def test_crowds_areas_and_the_original_stay_as_they_were():
    coco = made()
    before = copy.deepcopy(coco.dataset)
    after = noisy(coco, 1, 0)
    assert coco.dataset == before
    assert after.dataset["images"] == before["images"]
    for number, annotation in coco.anns.items():
        now = after.anns[number]
        assert (now["area"], now["image_id"]) == (annotation["area"], annotation["image_id"])
        assert (now == annotation) is bool(annotation["iscrowd"])


def test_a_single_class_is_kept_and_only_boxes_change():
    changed = wrong(made(classes=1), 1)
    assert len(changed) == COUNT * 0.9
    assert {annotation["category_id"] for annotation in changed.values()} == {10}


@pytest.mark.parametrize("share", [0, 0.0])
def test_without_noise_the_annotations_are_the_same_object(share):
    coco = made()
    assert noisy(coco, share, 0) is coco


@pytest.mark.parametrize("share", [math.nan, -0.1, 1.1, "x", None, math.inf])
def test_what_is_no_share_is_named(tmp_path, share):
    root = write_content(tmp_path / "set")
    for reader in (
        lambda: noisy(made(), share, 0),
        lambda: shapes(2, 2, label_noise=share),
        lambda: coco_folder(root, label_noise=share),
    ):
        with pytest.raises(ValueError, match=f"^label_noise={share}: must be a share of the annotations, in "):
            reader()


# In data sets


def test_a_folders_noise_is_in_train_alone(tmp_path):
    root = write_content(tmp_path / "set")
    clean = coco_folder(root, allow_overlap=True)
    data = coco_folder(root, allow_overlap=True, label_noise=1, noise_seed=3)
    assert data.val.coco is clean.val.coco
    assert data.train.coco.dataset == noisy(clean.train.coco, 1, 3).dataset
    image, target = data.train[1]
    assert target["crowds"].tolist() == clean.train[1][1]["crowds"].tolist() == [[0, 0, 40, 30]]
    assert target["boxes"].tolist() != clean.train[1][1]["boxes"].tolist()
    assert image.equal(clean.train[1][0])
    again = coco_folder(root, allow_overlap=True).train.coco
    assert len(again.anns) == 3
    assert again is clean.train.coco


def test_drawn_data_takes_noise_in_train_alone():
    clean, data = (shapes(20, 20, image_size=48, label_noise=share, noise_seed=2) for share in (0, 0.5))
    assert data.val.coco.dataset == clean.val.coco.dataset
    assert data.train.coco.dataset == noisy(clean.train.coco, 0.5, 2).dataset
    assert data.train[0][0].equal(clean.train[0][0])
