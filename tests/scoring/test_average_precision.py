"""Average precision: the same numbers as COCO's own, and sane ones where there is nothing to find."""

import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ghm.data import shapes
from ghm.data.annotations import index
from ghm.scoring import METRICS, STATS, chance, detect, judge, results, score
from ghm.scoring.average_precision import _Evaluation
from tests.shared import shared


def read(path):
    return json.loads(shared(path).read_text())


@pytest.fixture(
    scope="module",
    params=[
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
def known(request):
    """Annotations, detections on them, and what COCO's own code said of those."""
    annotations, detections, expected = request.param
    return COCO(str(shared(annotations))), read(detections), read(expected)


def test_scores_equal_those_that_cocos_own_code_gave(known):
    coco, found, expected = known
    scores = score(coco, found)
    assert set(scores) == set(METRICS)
    for name in STATS:
        assert scores[name] == pytest.approx(expected["stats"][name], abs=1e-9), name
    for tenth in (60, 70, 80, 90):
        assert scores[f"AP{tenth}"] == pytest.approx(expected["AP_per_iou"][f"0.{tenth}"], abs=1e-9)


def test_the_curves_hold_the_ap_of_every_threshold(known):
    coco, found, expected = known
    curves = judge(coco, found).precision_recall
    assert curves.recall.tolist() == pytest.approx([place / 100 for place in range(101)])
    means = {f"{iou:.2f}": curve.mean() for iou, curve in curves.mean.items()}
    assert means == pytest.approx(expected["AP_per_iou"], abs=1e-9)
    assert all(curve.shape == (101,) for curve in [*curves.mean.values(), *curves.per_class.values()])


def test_classes_have_cocos_own_numbers_or_none(known):
    coco, found, expected = known
    judgement = judge(coco, found)
    for name in ("AP", "AR100"):
        rows = {str(row["category_id"]): -1 if row[name] is None else row[name] for row in judgement.per_class}
        assert rows == pytest.approx(expected[f"{name}_per_category"], abs=1e-9)
    assert sum(row["objects"] for row in judgement.per_class) == expected["gt"] - expected["gt_crowd"]
    empty = [row for row in judgement.per_class if not row["objects"]]
    assert empty
    assert all(row[name] is None for row in empty for name in ("AP", "AP50", "AP75", "AR100"))
    there = {row["category_id"]: row for row in judgement.per_class if row["objects"]}
    assert {category: row["AP50"] for category, row in there.items()} == pytest.approx(
        {category: curve.mean() for category, curve in judgement.precision_recall.per_class.items()}
    )
    for name in ("AP50", "AP75"):
        assert np.mean([row[name] for row in there.values()]) == pytest.approx(judgement.numbers[name])
    assert [row["name"] for row in judgement.per_class] == [
        coco.cats[row["category_id"]]["name"] for row in judgement.per_class
    ]


@pytest.mark.parametrize("iou", [0.5, 0.75, 0.95])
def test_mistakes_add_up_to_the_score(known, iou):
    coco, found, _ = known
    judgement = judge(coco, found)
    images, aps = judgement.mistakes(iou), []
    for row in judgement.per_class:
        flags, objects = [], 0
        for image in images:
            flags += [(one.score, one.verdict) for one in image.found if one.category_id == row["category_id"]]
            own = [truth.verdict for truth in image.truths if truth.category_id == row["category_id"]]
            objects += sum(verdict != "ignored" for verdict in own)
            right = sum(one.category_id == row["category_id"] and one.verdict == "right" for one in image.found)
            assert own.count("found") == right
        assert objects == row["objects"]
        flags = sorted((flag for flag in flags if flag[1] != "ignored"), key=lambda flag: -flag[0])
        hits = np.array([verdict == "right" for _, verdict in flags])
        if objects:
            aps.append(area_under(hits, objects))
    assert np.mean(aps) == pytest.approx(judgement.precision_recall.mean[iou].mean(), abs=1e-9)


def area_under(hits, objects):
    """Average precision of detections, best first, at 101 places of recall."""
    right = hits.cumsum()
    recall, precision = right / objects, right / np.arange(1, len(hits) + 1)
    best = [precision[recall >= place].max(initial=0) for place in np.linspace(0, 1, 101)]
    return float(np.mean(best))


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
    assert set(scores) == set(METRICS) - {"APl", "ARl"}
    few = {scores.pop("AR1"), scores.pop("AR10")}  # images hold more than one object of a class
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
    assert 0.5 < min(few) < 1


def test_sizes_that_do_not_occur_have_no_score(coco):
    areas = [annotation["area"] for annotation in coco.dataset["annotations"]]
    assert max(areas) < 96**2
    assert "APl" not in score(coco, true_boxes(coco))
    small_only = shapes(1, 4, image_size=48, seed=1).val.coco
    assert set(METRICS) - set(score(small_only, true_boxes(small_only))) == {"APm", "APl", "ARm", "ARl"}


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


def test_images_without_annotations_cannot_be_scored(coco):
    listed = index({key: coco.dataset[key] for key in ("images", "categories")})
    for judged in (judge, score):
        with pytest.raises(ValueError, match=r"^annotations=none: .*results.*") as stop:
            judged(listed, [])
        assert "\n" not in str(stop.value)


def test_detections_on_other_images_are_refused(coco):
    with pytest.raises(ValueError, match="image_id=777: is not among the annotated images"):
        judge(coco, true_boxes(coco, image_id=777))


# The matching, which is ours for speed


def random_case(seed):
    """Few whole-numbered boxes: equal overlaps, equal scores, crowds, all sizes and those between them (32, 96).

    Every fifth case has over 100 detections of a class in an image.
    """
    rng = np.random.default_rng(seed)

    def box():
        corner, side = rng.integers(0, 4, 2) * 20, rng.choice([20, 32, 40, 60, 96, 120], 2)
        return [float(value) for value in (*corner, *side)]

    annotations = []
    for number in range(1, 1 + int(rng.integers(1, 40))):
        one = {"id": number, "image_id": int(rng.integers(1, 4)), "category_id": int(rng.integers(1, 3)), "bbox": box()}
        area = one["bbox"][2] * one["bbox"][3]
        annotations.append(one | {"area": area, "iscrowd": int(rng.random() < 0.2)})
    content = {"images": [{"id": n} for n in (1, 2, 3)], "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)]}
    found = [
        {
            "image_id": int(rng.integers(1, 4)),
            "category_id": int(rng.integers(1, 4)),
            "bbox": box() if rng.random() < 0.5 else list(rng.choice(annotations)["bbox"]),
            "score": float(rng.integers(1, 6)) / 5,
        }
        for _ in range(int(rng.integers(1, 120) if seed % 5 else 1400))
    ]
    return index(content | {"annotations": annotations}), found


def evaluated(kind, coco, found):
    evaluation = kind(coco, coco.loadRes([dict(one) for one in found]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(20))
def test_matches_are_pycocotools_own(seed, capsys):
    coco, found = random_case(seed)
    own, ours = evaluated(COCOeval, coco, found), evaluated(_Evaluation, coco, found)
    assert sum(entry is not None for entry in own.evalImgs) > 8
    for theirs, entry in zip(own.evalImgs, ours.evalImgs, strict=True):
        assert (theirs is None) == (entry is None)
        if theirs is not None:
            assert theirs.keys() == entry.keys()
            for key in theirs:
                np.testing.assert_array_equal(theirs[key], entry[key], err_msg=key)
    numbers = judge(coco, found).numbers
    assert numbers | {name: value for name, value in zip(STATS, own.stats, strict=True) if value >= 0} == numbers


# Mistakes


def scene(objects):
    """Annotations of classes 1 and 2 in images 1 to 3: (image, class, box[, crowd])."""
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(crowd),
        }
        for n, (image, category, box, *rest) in enumerate(objects, 1)
        for crowd in [bool(rest)]
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return index({"images": [{"id": n} for n in (1, 2, 3)], "annotations": annotations, "categories": categories})


def seen(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


HERE, THERE, CROWD = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 30.0, 30.0], [100.0, 0.0, 200.0, 200.0]


def test_mistakes_name_what_is_right_wrong_found_missed_and_ignored():
    coco = scene([(1, 1, HERE), (1, 2, THERE), (1, 1, CROWD, "crowd"), (2, 2, HERE)])
    found = [
        seen(1, 1, HERE, 0.5),
        seen(1, 1, [10.0, 10.0, 20.0, 18.0], 0.9),  # better scored, so it takes the box
        seen(1, 1, THERE, 0.4),  # a dog
        seen(1, 1, [120.0, 20.0, 50.0, 50.0], 0.3),  # inside the crowd
    ]
    first, second, third = judge(coco, found).mistakes()
    assert [(one.score, one.verdict) for one in first.found] == [
        (0.9, "right"),
        (0.5, "wrong"),
        (0.4, "wrong"),
        (0.3, "ignored"),
    ]
    assert first.found[0].box == (10.0, 10.0, 20.0, 18.0)
    assert {(truth.box, truth.category_id, truth.verdict) for truth in first.truths} == {
        (tuple(HERE), 1, "found"),
        (tuple(THERE), 2, "missed"),
        (tuple(CROWD), 1, "ignored"),
    }
    assert (second.image_id, second.found, [truth.verdict for truth in second.truths]) == (2, [], ["missed"])
    assert (third.image_id, third.found, third.truths) == (3, [], [])


def test_mistakes_are_those_of_their_threshold():
    judgement = judge(scene([(1, 1, HERE)]), [seen(1, 1, [10.0, 10.0, 20.0, 14.0], 0.9)])  # IoU 0.7
    assert [judgement.mistakes(iou)[0].found[0].verdict for iou in (0.5, 0.7, 0.75)] == ["right", "right", "wrong"]
    with pytest.raises(ValueError, match=r"iou=0.72: .*choose"):
        judgement.mistakes(0.72)


def test_a_least_score_is_as_if_nothing_scored_less(known):
    coco, found, _ = known
    judgement = judge(coco, found)
    for least in (0.3, 0.8):
        some = judge(coco, [one for one in found if one["score"] >= least])
        # What a hundred better ones of its class kept out stays out.
        assert judgement.mistakes(0.5, least) == some.mistakes(0.5)


def test_images_are_ordered_by_their_best_scored_wrong_detection():
    coco = scene([(1, 1, HERE), (2, 1, HERE), (3, 1, HERE)])
    found = [seen(1, 1, HERE, 0.99), seen(1, 1, THERE, 0.2), seen(2, 1, THERE, 0.1), seen(2, 2, THERE, 0.7)]
    found += [seen(3, 1, HERE, 0.9)]
    judgement = judge(coco, found)
    assert [image.image_id for image in judgement.false_positives()] == [2, 1]
    assert [one.score for one in judgement.false_positives()[0].wrong] == [0.7, 0.1]
    assert [image.image_id for image in judgement.false_positives(min_score=0.25)] == [2]


def test_images_are_ordered_by_their_missed_objects_then_by_their_size():
    coco = scene([(1, 1, HERE), (2, 1, THERE), (3, 1, HERE), (3, 2, HERE), (3, 1, CROWD, "crowd")])
    judgement = judge(coco, [seen(1, 1, CROWD, 0.9)])
    assert [(image.image_id, len(image.missed)) for image in judgement.misses()] == [(3, 2), (2, 1), (1, 1)]
    judgement = judge(coco, [seen(3, 1, HERE, 0.9), seen(3, 2, HERE, 0.1), seen(2, 1, THERE, 0.2)])
    assert [image.image_id for image in judgement.misses()] == [1]
    assert [image.image_id for image in judgement.misses(min_score=0.15)] == [1, 3]


def test_where_only_crowds_are_there_is_no_number_and_no_curve():
    judgement = judge(scene([(1, 1, CROWD, "crowd")]), [seen(1, 1, HERE, 0.9)])
    assert judgement.numbers == {}
    assert judgement.precision_recall.mean == judgement.precision_recall.per_class == {}
    assert [row["objects"] for row in judgement.per_class] == [0, 0]


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


def test_results_are_what_cocos_server_takes():
    found = {"image_id": np.int64(7), "category_id": np.int64(3), "score": np.float32(0.123456789)}
    written = results([found | {"bbox": np.array([1.23456, 2.0, 3.999, 4.005001], dtype=np.float32)}])
    assert json.loads(json.dumps(written)) == [
        {"image_id": 7, "category_id": 3, "bbox": [1.23, 2.0, 4.0, 4.01], "score": 0.12346}
    ]
    assert found["score"] == np.float32(0.123456789)
