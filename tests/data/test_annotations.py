"""Annotation files: what is completed in a good one, and what is said about a bad one."""

import json
import math
import re
from pathlib import Path

import pytest

from ghm.data import files
from ghm.data.annotations import checked, read
from ghm.data.findings import Findings
from tests.coco import CONTENT, LACKING, changed, save

BOX = {"image_id": 7, "category_id": 4, "bbox": [20, 5, 8, 8]}


@pytest.fixture
def refusal(tmp_path):
    """What `read` says about bad content, without the file's name; it must be one line that begins with it."""

    def refusal(content, **options):
        path = tmp_path / "boxes.json"
        with pytest.raises(ValueError) as refused:  # noqa: PT011 (the callers match the text)
            opened(tmp_path, content, **options)
        text = str(refused.value)
        assert text.startswith(f"{path}: ")
        assert len(text.splitlines()) == 1
        return text.removeprefix(f"{path}: ")

    return refusal


def opened(tmp_path, content, boxes=True, **options):
    path = save(tmp_path / "boxes.json", content)
    findings = Findings(path)
    coco = checked(path, read(path, findings, boxes), findings, **options)
    findings.say()
    return coco


# Completing


def test_good_content_is_kept_as_it_is(tmp_path):
    coco = opened(tmp_path, CONTENT)
    assert coco.dataset == CONTENT
    assert {number: annotation["iscrowd"] for number, annotation in coco.anns.items()} == {11: 0, 12: 1, 14: 0}


@pytest.mark.parametrize("nothing", [LACKING, None])
def test_missing_areas_and_crowd_flags_are_completed(tmp_path, nothing):
    content = changed("annotations", 0, area=nothing, iscrowd=nothing)
    completed = opened(tmp_path, content).anns[11]
    assert (completed["area"], completed["iscrowd"]) == (200, 0)


def test_annotation_ids_start_at_one(tmp_path):
    # Id 0 means "matched with nothing" to pycocotools.
    for first in (0, -4):
        content = CONTENT | {"annotations": [BOX | {"id": first + number} for number in (0, 1, 5)]}
        assert list(opened(tmp_path, content).anns) == [1, 2, 6]


def test_images_and_categories_may_have_id_zero(tmp_path):
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4]}],
    }
    coco = opened(tmp_path, content)
    assert [coco.imgs[0]["file_name"], coco.cats[0]["name"]] == ["a.png", "cat"]
    assert [annotation["id"] for annotation in coco.imgToAnns[0]] == [1]


@pytest.mark.parametrize("bbox", [[-1, -1, 42, 32], [0, 0, 41, 31], [-0.4, 0, 40.8, 30], [0, 0, 1e-3, 1e-3]])
def test_boxes_may_leave_the_image_by_a_pixel_of_rounding(tmp_path, bbox):
    assert opened(tmp_path, changed("annotations", 2, bbox=bbox)).anns[14]["bbox"] == bbox


def test_a_list_of_images_alone_is_read_where_it_is_asked_for(tmp_path, refusal):
    listed = {key: CONTENT[key] for key in ("images", "categories")}
    coco = opened(tmp_path, listed, boxes=False)
    assert (sorted(coco.imgs), coco.anns) == ([3, 7], {})
    assert "no list of annotations" in refusal(listed)


# Refusing

FAULTS = [
    *(([1, 1, *sides], "has no area") for sides in ([0, 5], [5, 0], [-5, 5], [5, -5])),
    *(
        (bbox, "is not x, y, width, height")
        for bbox in (
            [1, 1, math.nan, 5],
            [math.nan, 1, 5, 5],
            [1, math.inf, 5, 5],
            [-math.inf, 1, 5, 5],
            [1, 1, math.inf, 5],
            [1.5, 10**400, 5, 5],
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            ["1", 2, 3, 4],
            [1, 2, None, 4],
            [[1, 2, 3, 4]],
            [],
        )
    ),
    *(
        (bbox, "leaves its image of 40 x 30 pixels")
        for bbox in ([-1.1, 1, 5, 5], [1, -1.1, 5, 5], [1, 1, 40.1, 5], [1, 1, 5, 30.1], [60, 60, 5, 5])
    ),
]


@pytest.mark.parametrize(("bbox", "fault"), FAULTS)
def test_a_box_that_is_none_is_named(refusal, bbox, fault):
    said = refusal(changed("annotations", 2, bbox=bbox))
    assert said.startswith("annotation 14: bbox=[")
    assert fault in said
    assert "data.invalid=drop" in said


@pytest.mark.parametrize(
    ("kind", "place", "values", "said"),
    [
        ("annotations", 2, {"image_id": 8}, "annotation 14: image_id=8 is not among"),
        ("annotations", 2, {"category_id": 5}, "annotation 14: category_id=5 is not among"),
        ("annotations", 2, {"area": "64"}, "annotation 14: area='64': must be a number"),
        ("annotations", 2, {"iscrowd": "no"}, "annotation 14: iscrowd='no': must be a number"),
        *(
            (kind, 1, {"id": other}, f"{one} {other}: id={other} is given twice")
            for kind, one, other in (("images", "image", 7), ("annotations", "annotation", 11))
        ),
        ("categories", 1, {"id": 90}, "category 90: id=90 is given twice"),
        *(
            (kind, 1, {"id": value}, f"{one} {value}: id={value!r}: must be a whole number")
            for kind, one in (("images", "image"), ("annotations", "annotation"), ("categories", "category"))
            for value in ("seven", 7.5, True, [7])
        ),
        *(
            ("annotations", 2, {key: "4b"}, f"annotation 14: {key}='4b': must be a whole number")
            for key in ("image_id", "category_id")
        ),
        ("annotations", 2, {"bbox": "20 5 8 8"}, "annotation 14: bbox='20 5 8 8': must be a list"),
        ("images", 1, {"width": 20.5}, "image 3: width=20.5: must be a whole number"),
        ("images", 1, {"height": "5O"}, "image 3: height='5O': must be a whole number"),
        ("images", 1, {"width": 0}, "image 3: is 0 x 50 pixels"),
        ("images", 1, {"height": -50}, "image 3: is 20 x -50 pixels"),
        ("images", 1, {"file_name": 3}, "image 3: file_name=3: must be a text"),
        ("categories", 1, {"name": 4}, "category 4: name=4: must be a text"),
        *(
            (kind, place, {key: value}, f"{one} {number}: has no {key}")
            for kind, one, place, number, keys in (
                ("images", "image", 1, 3, ("file_name",)),
                ("annotations", "annotation", 2, 14, ("image_id", "category_id", "bbox")),
                ("categories", "category", 1, 4, ("name",)),
            )
            for key in keys
            for value in (LACKING, None)
        ),
        *(
            (kind, 1, {"id": LACKING}, f"{one} None: has no id")
            for kind, one in (("images", "image"), ("annotations", "annotation"), ("categories", "category"))
        ),
    ],
)
@pytest.mark.parametrize("invalid", ["error", "drop"])
def test_a_bad_entry_is_named(refusal, kind, place, values, said, invalid):
    assert refusal(changed(kind, place, **values), invalid=invalid).startswith(said)


@pytest.mark.parametrize(
    "name",
    [
        "../seven.png",
        "deep/../../seven.png",
        "..",
        "/etc/seven.png",
        "..\\seven.png",
        "deep\\..\\seven.png",
        "\\seven.png",
        "\\\\server\\share\\seven.png",
        "C:\\seven.png",
        "C:/seven.png",
        "C:seven.png",
        "seven.png\0.txt",
    ],
)
def test_a_file_name_that_leaves_the_folder_is_refused(refusal, name):
    said = refusal(changed("images", 0, file_name=name))
    assert said.startswith(f"image 7: file_name={name!r}: leaves the folder of the images")


@pytest.mark.parametrize("name", ["a..b.png", "...png", "12:30.png", "deep/a b.png"])
def test_a_file_name_may_hold_dots_colons_and_spaces(tmp_path, name):
    assert opened(tmp_path, changed("images", 0, file_name=name)).imgs[7]["file_name"] == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *(
            (damaged, "not a whole JSON file")
            for damaged in (
                json.dumps(CONTENT)[:-40].encode(),
                b"",
                b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe",
                b"\xff\xd8\xff\xe0 not JSON \n at all",
                b'{"images": ' + b"[" * 100_000,
                b'{"images": [' + b"9" * 5_000 + b"]}",
            )
        ),
        *((other, "not a COCO instances file, it has no list of images") for other in ([], [1], "x", 3, None, {})),
        *(
            (CONTENT | {missing: value}, f"not a COCO instances file, it has no list of {missing};")
            for missing in CONTENT
            for value in (None, {"id": 1}, "none")
        ),
        *(
            ({key: value for key, value in CONTENT.items() if key != missing}, f".* no list of {missing};")
            for missing in CONTENT
        ),
        *(
            (CONTENT | {kind: [1, *CONTENT[kind]]}, f"{one} number 1: is not a set of keys")
            for kind, one in (("images", "image"), ("annotations", "annotation"), ("categories", "category"))
        ),
        (CONTENT | {"annotations": []}, "2 images, 0 boxes, 3 categories; needs at least one of each"),
        (CONTENT | {"images": []}, "0 images, 3 boxes, 3 categories; needs at least one of each"),
        (CONTENT | {"categories": []}, "2 images, 3 boxes, 0 categories; needs at least one of each"),
        (CONTENT | {"annotations": [{"id": 1, "image_id": 7, "caption": "a cat"}]}, "holds captions"),
        (
            CONTENT | {"annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": [BOX]}]},
            "holds panoptic segments",
        ),
        ([BOX | {"score": 0.9}], "holds detections"),
    ],
)
def test_a_file_of_another_kind_is_named(refusal, content, said):
    assert re.match(said, refusal(content))


def test_a_score_beside_a_box_makes_no_results_file(tmp_path):
    assert opened(tmp_path, changed("annotations", 0, score=0.9)).anns[11]["score"] == 0.9


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}/none.json: not a whole JSON file"):
        read(tmp_path / "none.json", Findings(tmp_path))


# Dropping


def test_dropping_leaves_out_the_faulty_boxes_and_no_others(tmp_path, caplog):
    faulty = [BOX | {"id": 100 + number, "bbox": bbox} for number, (bbox, _) in enumerate(FAULTS)]
    mixed = [faulty[0], CONTENT["annotations"][0], *faulty[1:], *CONTENT["annotations"][1:]]
    coco = opened(tmp_path, CONTENT | {"annotations": mixed}, invalid="drop")
    assert coco.dataset["annotations"] == CONTENT["annotations"]
    assert [annotation["id"] for annotation in coco.imgToAnns[7]] == [11, 12, 14]
    assert len(coco.imgs) == 2
    [said] = [message for message in caplog.messages if "no iscrowd" not in message]
    first = "annotation 100: bbox=[1, 1, 0, 5] has no area"
    assert said == f"{tmp_path}/boxes.json: boxes left out ({len(FAULTS)}; first: {first})"


def test_dropping_says_nothing_about_a_sound_file(tmp_path, caplog):
    assert opened(tmp_path, CONTENT, invalid="drop").dataset == CONTENT
    assert caplog.messages == []


def test_dropping_all_boxes_is_refused(refusal):
    content = CONTENT | {"annotations": [BOX | {"id": 1, "bbox": [1, 1, 0, 0]}]}
    assert refusal(content, invalid="drop").startswith("1 boxes, none of them usable")


def test_an_unknown_way_with_faulty_boxes_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^invalid=keep: must be error or drop"):
        opened(tmp_path, CONTENT, invalid="keep")


# Files


def find(coco, folder):
    files.find(Path("at.json"), coco.dataset["images"], folder, Findings(folder))


def test_the_first_missing_file_is_named_with_how_many_more(tmp_path):
    coco = opened(tmp_path, changed("images", 1, file_name="two\nlines.png"))
    said = r"^at.json: image 7 lists file_name='seven.png', which is not in .* \(2 of 2 missing\); "
    with pytest.raises(ValueError, match=said):
        find(coco, tmp_path)
    (tmp_path / "seven.png").touch()
    with pytest.raises(ValueError, match=r"^at.json: image 3 lists .*'two\\nlines.png'.* \(1 of 2 missing\)"):
        find(coco, tmp_path)


@pytest.mark.parametrize("name", ["folder", "x" * 300, "\ud800.png", ""])
def test_what_is_no_file_is_missing(tmp_path, name):
    (tmp_path / "seven.png").touch()
    (tmp_path / "folder").mkdir()
    coco = opened(tmp_path, changed("images", 1, file_name=name))
    with pytest.raises(ValueError, match=r"^at.json: image 3 lists .* \(1 of 2 missing\)"):
        find(coco, tmp_path)


def test_images_may_lie_in_linked_folders(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "three.jpg").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "deep").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "seven.png").touch()
    find(opened(tmp_path, CONTENT), tmp_path / "images")
