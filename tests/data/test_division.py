"""One annotation file divided into train and val."""

from collections import Counter

import pytest

from ghm.data import coco_folder
from ghm.data.annotations import index
from ghm.data.division import divide
from tests.data.folders import both, drawn, write


def images(count: int, classes) -> dict:
    """`count` images, of which number i has one box of each class in classes(i)."""
    entries = [{"id": i, "file_name": f"{i}.png", "width": 50, "height": 50} for i in range(count)]
    pairs = [(i, category) for i in range(count) for category in classes(i)]
    annotations = [
        {"id": number, "image_id": i, "category_id": category, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
        for number, (i, category) in enumerate(pairs, start=1)
    ]
    categories = [{"id": category, "name": str(category)} for category in sorted({c for _, c in pairs})]
    return {"images": entries, "annotations": annotations, "categories": categories}


def test_every_image_is_on_one_side_with_its_boxes():
    whole = index(images(50, lambda i: [i % 3 + 1]))
    train, val = divide(whole, 0.2, seed=0)
    assert train.imgs.keys() | val.imgs.keys() == whole.imgs.keys()
    assert not train.imgs.keys() & val.imgs.keys()
    for part in (train, val):
        assert {a["image_id"] for a in part.anns.values()} == set(part.imgs)
        assert part.cats == whole.cats


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_classes_are_shared_as_images_are(share, seed):
    # Class 1 everywhere, 2 in a tenth, 3 in a twentieth, and every fifth image without a box.
    def classes(i):
        return [] if i % 5 == 4 else [1] + [2] * (i % 10 == 0) + [3] * (i % 20 == 1)

    train, val = divide(index(images(200, classes)), share, seed)
    counts = Counter(a["category_id"] for a in val.anns.values())
    assert len(val.imgs) == pytest.approx(200 * share, abs=2)
    for category, there in ((1, 160), (2, 20), (3, 10)):
        assert counts[category] == pytest.approx(there * share, abs=1.01)
    empty = sum(not val.imgToAnns[image] for image in val.imgs)
    assert empty == pytest.approx(40 * share, abs=2)
    assert len(train.imgs) + len(val.imgs) == 200


def test_the_only_image_of_a_class_is_trained_on():
    for seed in range(5):
        train, _ = divide(index(images(30, lambda i: [2] if i == 7 else [1])), 0.2, seed)
        assert 7 in train.imgs


def test_a_seed_draws_the_same_and_another_draws_others():
    whole = index(images(60, lambda i: [i % 2 + 1]))
    drawn_by = [frozenset(divide(whole, 0.25, seed)[1].imgs) for seed in (0, 0, 1, 2)]
    assert drawn_by[0] == drawn_by[1]
    assert len(set(drawn_by)) == 3
    shuffled = index(whole.dataset | {"images": whole.dataset["images"][::-1]})
    assert frozenset(divide(shuffled, 0.25, 0)[1].imgs) == drawn_by[0]


def test_images_of_one_file_stay_together():
    content = images(20, lambda i: [1])
    for image in content["images"]:
        image["file_name"] = f"{image['id'] // 2}.png"
    train, val = divide(index(content), 0.3, 0)
    names = [{image["file_name"] for image in part.imgs.values()} for part in (train, val)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("share", [0, 1, -0.2, 2, "a fifth", True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"^val_share={share}: must be between 0 and 1"):
        divide(index(images(10, lambda i: [1])), share, 0)


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^val_share=0.01: leaves no image on one side of 10"):
        divide(index(images(10, lambda i: [1])), 0.01, 0)


@pytest.mark.parametrize("file", ["annotations/instances_default.json", "result.json", "train/_annotations.coco.json"])
def test_a_folder_with_one_file_is_divided(tmp_path, file):
    write(tmp_path, file, *drawn("train", 20), "images")
    train, val = coco_folder(str(tmp_path), val_share=0.2)
    assert len(train) + len(val) == 20
    assert 3 <= len(val) <= 5
    assert train.origin.annotations == val.origin.annotations == file
    assert val[0][0].shape == (3, 72, 96)


def test_a_folder_with_two_files_is_not_divided_unless_one_is_named(tmp_path):
    root = both(tmp_path)
    with pytest.raises(ValueError, match=r"there is annotations/instances_val.json beside annotations/instances_"):
        coco_folder(root, val_share=0.2)
    assert [len(s) for s in coco_folder(root, train="annotations/instances_train.json", val_share=0.5)] == [4, 4]
