"""`ghm data check` and `ghm data fetch` from the command line."""

import json
from pathlib import Path

import pytest

from ghm import fetch
from tests.coco import write_folder


def test_a_sound_folder_is_counted_and_drawn(ghm, capsys):
    write_folder(Path("folder"), images=4)
    assert ghm("data", "check", "data.root=folder", "dir=out") == 0
    said = capsys.readouterr().out
    content = json.loads(Path("folder/annotations/instances_train.json").read_text())
    boxes = len(content["annotations"])
    disks = sum(annotation["category_id"] == 10 for annotation in content["annotations"])
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if "│" in line}
    assert (rows["images"], rows["boxes"], rows["crowds"], rows["disk"]) == ("4", str(boxes), "0", str(disks))
    assert "train: annotations/instances_train.json with the images in images/ (COCO)" in said
    assert Path("out/contact_sheet.png").stat().st_size > 10_000


def test_all_damaged_images_are_named_at_once(ghm, capsys):
    write_folder(Path("folder"), images=4)
    for name in ("0002.png", "0007.png"):  # one of train, one of val
        path = Path("folder/images") / name
        path.write_bytes(path.read_bytes()[:-200])
    assert ghm("data", "check", "data.root=folder", "dir=out") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "0002.png: image 2" in line
    assert "0007.png: image 7" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["check"], "data.root=null"),
        (["check", "data.root=nowhere"], "nowhere"),
        (["fetch"], "coco2017"),
        (["fetch", "voc"], "data=voc"),
        (["fetch", "coco2017", "roof=x"], "roof"),
        (["fetch", "coco2017", "test=maybe"], "test=maybe"),
        ([], "data check"),
        (["fly"], "data fly"),
    ],
)
def test_bad_input_is_one_line(ghm, capsys, arguments, named):
    assert ghm("data", *arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert named in line


def test_fetch_passes_on_what_is_asked_for(ghm, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(fetch, "coco2017", lambda root, **options: asked.append((root, options)))
    assert ghm("data", "fetch", "coco2017", "root=there", "test=true") == 0
    assert asked == [(Path("there"), {"test": True, "keep": False})]
    assert "data.root=there" in capsys.readouterr().out
