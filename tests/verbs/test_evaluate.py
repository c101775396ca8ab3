"""`ghm evaluate`: a checkpoint gives its run's own numbers again, on any data of its classes, and runs no code."""

import json
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from ghm.training import checkpoint
from tests.coco import write_folder

SMALL = ("epochs=2", "data.train_images=16", "data.val_images=8", "data.image_size=64", "batch_size=8")
FIGURES = {"precision_recall.png", "precision_recall.svg", "per_class.csv", "false_positives.png", "misses.png"}


def test_a_run_keeps_figures_of_what_it_finds(trained):
    figures = FIGURES | {"harmonizing.png"}
    assert {path.name for path in (trained / "figures").iterdir()} == figures
    client = MlflowClient(f"sqlite:///{trained.parent}/runs/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("ghm").experiment_id])
    assert {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, "figures")} == figures
    assert "precision_recall.png" in {entry.path for entry in client.list_artifacts(run.info.run_id)}  # to compare
    assert {f"val/{name}" for name in ("AR1", "AR10", "AR100", "ARs")} <= run.data.metrics.keys()
    ends = ("evenness", "easiest", "hardest")
    assert {f"train/{part}_gradient_{end}" for part in ("cls", "box") for end in ends} <= run.data.metrics.keys()


def test_a_checkpoint_gives_the_numbers_of_its_run(trained, ghm, capsys):
    assert ghm("evaluate", f"checkpoint={trained / 'last.pt'}", "dir=out", "loader_processes=0") == 0
    said = capsys.readouterr().out
    numbers = json.loads(Path("out/metrics.json").read_text())
    for name, value in checkpoint.read(trained / "last.pt")["history"][-1]["metrics"].items():
        if name.startswith("val/"):
            assert numbers[name.removeprefix("val/")] == pytest.approx(value, abs=1e-6), name
    assert {path.name for path in Path("out").iterdir()} >= FIGURES | {"detections.json", "metrics.json"}
    assert f"{numbers['AP50']:.4f}" in said
    first = json.loads(Path("out/detections.json").read_text())[0]
    assert set(first) == {"image_id", "category_id", "bbox", "score"}


def test_other_data_of_the_same_classes_may_be_given(trained, ghm):
    write_folder(Path("folder"))
    here = (f"checkpoint={trained / 'best.pt'}", "data=coco_folder", "data.root=folder", "dir=out")
    assert ghm("evaluate", *here) == 0
    assert {found["image_id"] for found in json.loads(Path("out/detections.json").read_text())} <= {5, 6, 7, 8}


def test_data_of_other_classes_is_refused(trained, ghm, capsys):
    write_folder(Path("folder"))
    for file in Path("folder/annotations").iterdir():
        file.write_text(file.read_text().replace('"disk"', '"dish"'))
    here = (f"checkpoint={trained / 'best.pt'}", "data=coco_folder", "data.root=folder")
    assert ghm("evaluate", *here) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "'dish'" in line
    assert "'disk'" in line


def test_images_without_true_boxes_give_what_the_server_takes(trained, ghm, capsys):
    write_folder(Path("set"))
    Path("set/images").rename("set/train2017")
    Path("set/test2017").symlink_to(Path("set/train2017").resolve())
    content = json.loads(Path("set/annotations/instances_val.json").read_text())
    Path("set/annotations/instances_train.json").rename("set/annotations/instances_train2017.json")
    del content["annotations"]
    Path("set/annotations/image_info_test-dev2017.json").write_text(json.dumps(content))
    here = ("data=coco2017", "data.root=set", "data.val=test-dev2017")
    assert ghm("evaluate", f"checkpoint={trained / 'best.pt'}", *here, "dir=out") == 0
    assert "no true boxes" in capsys.readouterr().out
    assert {path.name for path in Path("out").iterdir()} - {".hydra", "evaluate.log"} == {"detections.json"}
    assert ghm("train", *here) == 2  # nothing to score an epoch by
    assert "data.val=test-dev2017" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model._target_", "os.system"),
        ("model._target_", "ghm.models.retinanet.torch.load"),
        ("model._target_", "ghm.models.backbones.Path"),
        ("loss.cls._target_", "builtins.eval"),
        ("loss.box", {"_target_": "ghm.losses.ASL1", "mu": {"_target_": "os.getcwd"}}),
        ("data.root", "${oc.env:HOME}"),
        ("model.max_size", [{"_target_": "os.getcwd"}]),
        ("data._target_", "torchvision.datasets.FakeData"),
    ],
)
def test_a_checkpoint_of_others_builds_nothing_but_our_own_parts(trained, ghm, capsys, key, value):
    content = checkpoint.read(trained / "best.pt")
    *path, last = key.split(".")
    node = content["recipe"]
    for name in path:
        node = node[name]
    node[last] = value
    torch.save(content, "hostile.pt")
    assert ghm("evaluate", "checkpoint=hostile.pt") == 2
    assert "is no part of ghm, torch or torchvision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["checkpoint"]),
        (["checkpoint=absent.pt"], ["absent.pt", "cannot be read"]),
        (["checkpoint=text.pt"], ["text.pt", "cannot be read"]),
        (["checkpoint=other.pt"], ["other.pt", "was not written by ghm train"]),
    ],
)
def test_what_is_no_checkpoint_is_one_line(ghm, capsys, arguments, named):
    Path("text.pt").write_text("hello")
    torch.save({"state": 1}, "other.pt")
    assert ghm("evaluate", *arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    for word in named:
        assert word in line
