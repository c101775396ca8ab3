"""COCO 2017 as it is unpacked: where its files lie, and what is said where they do not."""

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from ghm.data import coco_folder
from tests.coco import CONTENT, changed, save

coco2017 = partial(coco_folder, train="train2017", val="val2017", invalid="drop")


@pytest.fixture
def unpacked(tmp_path):
    """COCO 2017's layout, with one image each."""
    listed = {"images": CONTENT["images"][:1], "categories": CONTENT["categories"]}
    files = {"image_info_test-dev2017": listed}
    files |= dict.fromkeys(("instances_train2017", "instances_val2017"), CONTENT | listed)
    (tmp_path / "annotations").mkdir()
    for name, content in files.items():
        save(tmp_path / "annotations" / f"{name}.json", content)
    for number, folder in enumerate(("train2017", "val2017", "test2017")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / folder / "seven.png")
    return tmp_path


def red(dataset):
    return round(float(dataset[0][0][0, 0, 0]) * 255)


def test_coco2017_reads_each_split_from_its_folder(unpacked):
    train, val = coco2017(str(unpacked))
    assert [red(train), red(val)] == [0, 1]
    assert train.has_boxes
    assert val.has_boxes
    assert train.category_ids == [4, 17, 90]


def test_test_dev_lists_images_without_boxes(unpacked):
    train, test = coco2017(str(unpacked), val="test-dev2017")
    assert (train.has_boxes, test.has_boxes) == (True, False)
    assert (red(test), len(test), test.category_ids) == (2, 1, [4, 17, 90])
    assert test[0][1]["boxes"].shape == (0, 4)


def test_coco2017_leaves_faulty_boxes_out_of_itself(unpacked, caplog):
    content = changed("annotations", 0, bbox=[1, 1, 0, 5]) | {"images": CONTENT["images"][:1]}
    save(unpacked / "annotations" / "instances_train2017.json", content)
    assert sorted(coco2017(str(unpacked)).train.coco.anns) == [12, 14]
    assert "annotation 11" in caplog.text
    with pytest.raises(ValueError, match="annotation 11: bbox="):
        coco2017(str(unpacked), invalid="error")


@pytest.mark.parametrize("name", ["annotations/instances_val2017.json", "annotations/image_info_test-dev2017.json"])
def test_a_missing_file_of_coco2017_is_named(unpacked, name):
    (unpacked / name).unlink()
    val = Path(name).stem.split("_")[-1]
    with pytest.raises(ValueError, match=f"^data.root={unpacked}: no annotations/instances_{val}.json there"):
        coco2017(str(unpacked), val=val)


def test_a_missing_image_of_coco2017_is_named_with_its_folder(unpacked):
    (unpacked / "test2017" / "seven.png").unlink()
    with pytest.raises(ValueError, match=f"'seven.png', which is not in {unpacked}/test2017 "):
        coco2017(str(unpacked), val="test-dev2017")
