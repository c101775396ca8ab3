"""Folders as annotation tools write them: which files are train's and val's, and where their images lie."""

import re
from pathlib import Path

import pytest

from ghm.data import coco_folder
from tests.data.folders import both, drawn, write

LAYOUTS = {
    "COCO": ("annotations/instances_{}.json", "images"),
    "COCO, a folder a split": ("annotations/instances_{}.json", "{}"),
    "CVAT": ("annotations/instances_{}.json", "images/{}"),
    "Roboflow": ("{}/_annotations.coco.json", "{}"),
    "FiftyOne": ("{}/labels.json", "{}/data"),
    "plain": ("{}.json", "images"),
    "plain, in annotations": ("annotations/{}.json", "images/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_a_layout_is_found_by_itself(tmp_path, layout, val):
    file, folder = LAYOUTS[layout]
    for split, name, count in (("train", "train", 8), ("val", val, 4)):
        write(tmp_path, file.format(name), *drawn(split, count), folder.format(name))
    train, scored = coco_folder(str(tmp_path))
    assert (len(train), len(scored)) == (8, 4)
    assert train.class_names == ["bolt", "nut"]
    assert scored[0][0].shape == (3, 72, 96)
    origin = scored.origin
    assert (origin.annotations, origin.images) == (file.format(val), folder.format(val))
    assert origin.layout in layout or layout in ("CVAT", "plain", "plain, in annotations")


def test_an_exact_split_is_taken_where_another_name_is_given(tmp_path):
    both(tmp_path, file="{}/_annotations.coco.json", folder="{}")
    write(tmp_path, "test/_annotations.coco.json", *drawn("test", 3), "test")
    assert len(coco_folder(str(tmp_path), val="test").val) == 3


def test_files_and_the_folder_of_images_can_be_named(tmp_path):
    for split, count in (("train", 8), ("val", 4)):
        write(tmp_path, f"exports/{split}-final.json", *drawn(split, count), "photos/2026")
    files = {"train": "exports/train-final.json", "val": str(tmp_path / "exports" / "val-final.json")}
    with pytest.raises(ValueError, match=r"data.images=FOLDER"):
        coco_folder(str(tmp_path), **files)
    train, val = coco_folder(str(tmp_path), **files, images="photos/2026")
    assert (len(train), len(val)) == (8, 4)
    assert val.origin == ("named by hand", "exports/val-final.json", "photos/2026")


def test_two_files_of_one_export_can_be_named(tmp_path):
    write(tmp_path, "annotations/instances_default.json", *drawn("train"), "images")
    write(tmp_path, "annotations/instances_later.json", *drawn("val", 4), "images")
    named = {"train": "annotations/instances_default.json", "val": "annotations/instances_later.json"}
    assert [len(split) for split in coco_folder(str(tmp_path), **named)] == [8, 4]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["annotations/instances_default.json"], "but annotations/instances_default.json; divide it with data.val_"),
        (["result.json"], "but result.json; divide it with data.val_share=0.2"),
        (["a.json", "annotations/b.json"], "but a.json, annotations/b.json; name two files with data.train=FILE"),
        (["train/_annotations.coco.json"], "name it with data.val=FILE, or divide train/_annotations.coco.json with"),
        ([], "point data.root at a folder with images/ and annotations/instances_train.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "nothing",
)
def test_what_is_there_instead_is_named(tmp_path, files, said):
    for file in files:
        write(tmp_path, file, *drawn("train"), "images")
    with pytest.raises(ValueError, match=f"^data.root={tmp_path}: no annotations/instances_.*{re.escape(said)}"):
        coco_folder(str(tmp_path))


def test_a_named_file_that_is_not_there_is_refused(tmp_path):
    both(tmp_path)
    with pytest.raises(ValueError, match=r"no annotations/gone.json there; give the path"):
        coco_folder(str(tmp_path), train="annotations/gone.json")


# File names that anybody would understand


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("images/{}", "{}"),
        ("images\\{}", "{}"),
        ("export\\job 1\\{}", "{}"),
        ("./{}", "{}"),
        ("{}.PNG", "{}.png"),
        ("{}.png", "{}.PNG"),
        ("deep\\{}", "deep/{}"),
    ],
)
def test_a_file_name_is_read_as_the_one_file_that_fits(tmp_path, caplog, listed, there):
    def rename(content):
        for image in content["images"]:
            name = image["file_name"]
            image["file_name"] = listed.format(name.removesuffix(".png") if "." in listed[2:] else name)

    both(tmp_path, rename)
    for file in list((tmp_path / "images").iterdir()):
        name = there.format(file.stem if "." in there else file.name)
        target = tmp_path / "images" / name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    train, _ = coco_folder(str(tmp_path))
    assert train[7][0].shape == (3, 72, 96)
    said = [message for message in caplog.messages if "file names" in message]
    assert len(said) in (0, 2)  # of train and val; images/ and ./ may be right as they are
    assert all("(8; first: image 1: " in message or "(4; first: image 1: " in message for message in said)
    assert said or listed in ("images/{}", "./{}")


def test_two_names_are_never_one_file(tmp_path):
    def misplace(content):
        content["images"][0]["file_name"] = "a/" + content["images"][1]["file_name"]

    both(tmp_path, misplace)
    with pytest.raises(ValueError, match=r"image 1 lists file_name='a/train_002.png', which is not in .*1 of 8 miss"):
        coco_folder(str(tmp_path))


def test_of_two_files_that_fit_none_is_taken(tmp_path):
    def capitals(content):
        content["images"][0]["file_name"] = content["images"][0]["file_name"].replace(".png", ".PnG")

    both(tmp_path, capitals)
    first = tmp_path / "images" / "train_001.png"
    (tmp_path / "images" / "train_001.PNG").write_bytes(first.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"file_name='train_001.PnG', which is not in"):
        coco_folder(str(tmp_path))


@pytest.mark.parametrize("name", ["../train_001.png", "images\\..\\..\\train_001.png", "C:\\images\\train_001.png"])
def test_what_climbs_out_of_the_folder_stays_refused(tmp_path, name):
    def climb(content):
        content["images"][0]["file_name"] = name

    both(tmp_path, climb)
    with pytest.raises(ValueError, match="leaves the folder of the images"):
        coco_folder(str(tmp_path))


def test_folders_of_any_name_are_read(tmp_path):
    root = tmp_path / "Größe, 100 % #1 (ü) 画像"
    both(root, folder="images/{}")
    assert [len(split) for split in coco_folder(str(root))] == [8, 4]
    assert Path(coco_folder(str(root)).train.origin.images) == Path("images/train")
