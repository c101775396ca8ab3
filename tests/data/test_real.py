"""Real data as it is read: numbers that are known of it."""

import pytest
import torch

from ghm.data import coco_folder
from ghm.scoring import score
from tests.shared import shared


def read(name):
    return coco_folder(str(shared(name)))


def targets_of(split):
    """All targets of a data set; blank images stand in for the files, which take seconds to read."""
    split.read = lambda entry: torch.zeros(3, entry["height"], entry["width"], dtype=torch.uint8)
    return [split[i][1] for i in range(len(split))]


def test_bccd_is_read():
    train, val = read("bccd")
    assert (len(train), len(val)) == (280, 69)
    assert train.class_names == ["RBC", "WBC", "Platelets"]
    for split in (train, val):
        image, target = split[0]
        assert image.shape == (3, 240, 320)
        assert target["boxes"].shape == (len(target["labels"]), 4)
        assert len(target["labels"]) > 0
    assert sum(len(target["labels"]) for target in targets_of(val)) == 938


def test_coco_mini_is_read_whole_with_its_crowds_and_gaps():
    train, val = read("coco_mini")
    for split, images, boxes, crowds in ((train, 47, 524, 6), (val, 57, 517, 7)):
        items = [split[i] for i in range(len(split))]
        assert len(items) == images
        assert split.num_classes == 80
        assert (split.category_ids[0], split.category_ids[-1]) == (1, 90)
        for (image, _), image_id in zip(items, split.image_ids, strict=True):
            entry = split.coco.imgs[image_id]
            assert image.shape == (3, entry["height"], entry["width"])
        targets = [target for _, target in items]
        assert sum(len(target["labels"]) for target in targets) == boxes - crowds
        assert sum(len(target["crowds"]) for target in targets) == crowds
        assert max(int(label) for target in targets for label in target["labels"]) < 80
    assert {58636, 226111} <= {int(target["image_id"]) for target in targets if not len(target["labels"])}


def test_coco_minis_masks_lie_in_their_boxes():
    val = read("coco_mini").val
    val.masks = True
    for target in targets_of(val):
        for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].tolist(), strict=True):
            rows, columns = mask.nonzero().T
            assert len(rows) > 0
            assert x1 - 1 <= columns.min() <= columns.max() <= x2 + 1
            assert y1 - 1 <= rows.min() <= rows.max() <= y2 + 1


def test_coco_minis_own_boxes_score_full_marks_with_its_crowds():
    val = read("coco_mini").val
    found = []
    for target in targets_of(val):
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": int(target["image_id"]), "category_id": val.category_ids[label], "bbox": box})
    assert score(val.coco, [detection | {"score": 0.9} for detection in found])["AP"] == pytest.approx(1.0)
