"""Average precision: the same numbers as COCO's own, and sane ones where there is nothing to find."""

import json
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from ghm.data import shapes
from ghm.evaluate import METRICS, chance, detect, score

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def read(path):
    if not (SHARED / path).is_file():
        pytest.skip(f"needs shared/data/{path} beside the checkout")
    return json.loads((SHARED / path).read_text())


def coco_of(path):
    read(path)
    return COCO(str(SHARED / path))


@pytest.mark.parametrize(
    ("annotations", "detections", "expected"),
    [
        (
            "cocoapi_parity/annotations/instances_val2014_100.json",
            "cocoapi_parity/results/instances_val2014_fakebbox100_results.json",
            "cocoapi_parity/expected/fakebbox100_expected.json",
        ),
        (
            # Equal scores, over 100 detections of a class, crowds, an image with nothing to find.
            "coco_mini/annotations/instances_val.json",
            "cocoapi_parity/extra/coco_mini_val_detections.json",
            "cocoapi_parity/extra/coco_mini_val_expected.json",
        ),
    ],
    ids=["fakebbox100", "coco_mini"],
)
def test_scores_equal_those_that_cocos_own_code_gave(annotations, detections, expected):
    found = read(detections)
    expected = read(expected)
    scores = score(coco_of(annotations), found)
    assert set(scores) == set(METRICS)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert scores[name] == pytest.approx(expected["stats"][name], abs=1e-9), name
    for tenth in (60, 70, 80, 90):
        assert scores[f"AP{tenth}"] == pytest.approx(expected["AP_per_iou"][f"0.{tenth}"], abs=1e-9)


@pytest.fixture(scope="module")
def coco():
    # Big enough for objects of COCO's sizes small (under 32 pixels) and medium.
    return shapes(1, 12, image_size=160, seed=1).val.coco


def true_boxes(coco, **changes):
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9} | changes
        for a in coco.dataset["annotations"]
    ]


def test_the_true_boxes_score_full_marks(coco):
    scores = score(coco, true_boxes(coco))
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    assert {"AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90", "APs", "APm"} == set(scores)


def test_sizes_that_do_not_occur_have_no_score(coco):
    areas = [annotation["area"] for annotation in coco.dataset["annotations"]]
    assert max(areas) < 96**2
    assert "APl" not in score(coco, true_boxes(coco))
    small_only = shapes(1, 4, image_size=48, seed=1).val.coco
    assert set(METRICS) - set(score(small_only, true_boxes(small_only))) == {"APm", "APl"}


def test_nothing_found_scores_zero(coco):
    scores = score(coco, [])
    assert scores == dict.fromkeys(scores, 0.0)
    assert "AP" in scores


@pytest.mark.parametrize("changes", [{"category_id": 99}, {"bbox": [0.0, 0.0, 1.0, 1.0]}])
def test_wrong_finds_score_zero(coco, changes):
    assert score(coco, true_boxes(coco, **changes))["AP"] == 0


def test_thresholds_tell_loose_boxes_from_tight_ones(coco):
    # Three quarters of the true width: IoU 0.75 for every box.
    narrow = true_boxes(coco)
    for detection in narrow:
        detection["bbox"][2] *= 0.76
    scores = score(coco, narrow)
    assert [scores[name] for name in ("AP50", "AP60", "AP70", "AP75")] == pytest.approx([1.0] * 4)
    assert [scores[name] for name in ("AP80", "AP90")] == [0, 0]
    assert scores["AP"] == pytest.approx(0.6)


def test_false_alarms_of_high_score_cost_precision(coco):
    found = true_boxes(coco, score=0.5)
    alarms = [d | {"bbox": [0.0, 0.0, 2.0, 2.0], "score": 0.99} for d in found]
    assert 0.2 < score(coco, found + alarms)["AP"] < 0.8


def test_scoring_prints_nothing(coco, capsys):
    score(coco, true_boxes(coco))
    assert capsys.readouterr().out == ""


def test_scoring_leaves_the_detections_as_they_are(coco):
    found = true_boxes(coco)
    score(coco, found)
    assert found == true_boxes(coco)


# Chance


def test_chance_is_far_below_perfect(coco):
    guess = score(coco, chance(coco))
    assert guess["AP50"] < 0.2
    assert guess["AP"] < 0.1


def test_chance_is_repeatable_and_depends_on_its_seed(coco):
    assert chance(coco, seed=1) == chance(coco, seed=1)
    assert chance(coco, seed=1) != chance(coco, seed=2)


@pytest.mark.parametrize("seed", range(5))
def test_chance_gives_each_image_the_boxes_of_one_other(coco, seed):
    boxes = {image: sorted(a["bbox"] for a in coco.imgToAnns[image]) for image in coco.getImgIds()}
    guessed = {image: [] for image in boxes}
    for detection in chance(coco, seed):
        guessed[detection["image_id"]].append(detection["bbox"])
    givers = []
    for image, given in guessed.items():
        [giver] = [other for other, own in boxes.items() if own == sorted(given)]
        assert giver != image
        givers.append(giver)
    assert sorted(givers) == sorted(boxes)


# Detections in COCO's format


def test_detections_are_written_as_coco_reads_them():
    outputs = {
        0.0: {"boxes": [[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 2.5, 1.0]], "scores": [0.75, 0.5], "labels": [1, 0]},
        1.0: {"boxes": [], "scores": [], "labels": []},
        2.0: {"boxes": [[5.0, 5.0, 6.0, 7.0]], "scores": [0.25], "labels": [2]},
    }

    def model(images):
        chosen = [outputs[image.mean().item()] for image in images]
        return [
            {
                "boxes": torch.tensor(o["boxes"]).reshape(-1, 4),
                "scores": torch.tensor(o["scores"]),
                "labels": torch.tensor(o["labels"], dtype=torch.int64),
            }
            for o in chosen
        ]

    def item(value, image_id):
        return torch.full((3, 2, 2), value), {"image_id": torch.tensor(image_id)}

    batches = [
        tuple(map(list, zip(item(0.0, 30), item(1.0, 10), strict=True))),
        tuple(map(list, zip(item(2.0, 20), strict=True))),
    ]
    assert detect(model, batches, [4, 17, 90], torch.device("cpu")) == [
        {"image_id": 30, "category_id": 17, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 30, "category_id": 4, "bbox": [0.0, 0.0, 2.5, 1.0], "score": 0.5},
        {"image_id": 20, "category_id": 90, "bbox": [5.0, 5.0, 1.0, 2.0], "score": 0.25},
    ]


def test_detecting_builds_no_graph():
    weight = torch.ones(1, requires_grad=True)

    def model(images):
        assert not (weight * 2).requires_grad
        return [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)} for _ in images]

    batches = [([torch.zeros(3, 2, 2)], [{"image_id": torch.tensor(1)}])]
    assert detect(model, batches, [1], torch.device("cpu")) == []
