"""Items of a data set: crowds, masks and augmentation, by seed alone, on images made in memory."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from ghm.data.annotations import index
from ghm.data.dataset import DetectionDataset
from ghm.settings import targets

CONF = Path(__file__).resolve().parents[2] / "conf" / "data" / "augment"
AUGMENTS = sorted(file.stem for file in CONF.glob("*.yaml"))
SIZE = (96, 64)
# White on black, far apart, away from the corner (0, 0).
SQUARES = [(8, 10, 14, 14), (40, 6, 12, 20), (70, 40, 16, 12)]
CROWD = (30, 40, 18, 16)


def polygon(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def runs(x, y, width, height):
    """The region as COCO's uncompressed RLE, column by column."""
    cover = np.zeros(SIZE[::-1], dtype=bool)
    cover[y : y + height, x : x + width] = True
    starts = np.flatnonzero(np.diff(cover.ravel(order="F"), prepend=False))
    counts = np.diff(starts, prepend=0, append=cover.size)
    return {"size": list(cover.shape), "counts": counts.tolist()}


def dataset(squares=SQUARES, crowds=(CROWD,), augment=None, **changes):
    """One image with squares of categories 2, 5 and 9 in turn, and crowds."""
    image = torch.zeros(3, SIZE[1], SIZE[0], dtype=torch.uint8)
    annotations = []
    for number, (x, y, width, height) in enumerate([*squares, *crowds]):
        image[:, y : y + height, x : x + width] = 255
        crowd = number >= len(squares)
        form = (runs if crowd else polygon)(x, y, width, height)
        own = {"id": number + 1, "image_id": 4, "category_id": (2, 5, 9)[number % 3], "iscrowd": int(crowd)}
        own |= {"bbox": [x, y, width, height], "area": width * height, "segmentation": form}
        annotations.append(own | changes)
    content = {
        "images": [{"id": 4, "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": category, "name": str(category)} for category in (9, 2, 5)],
        "annotations": annotations,
    }
    names = {category: str(category) for category in (9, 2, 5)}
    made = DetectionDataset(names, lambda: index(content), lambda entry: image.clone(), augment)
    made.masks = True
    return made


def augment(name):
    """As `data/augment={name}` gives it to a run."""
    with initialize_config_dir(str(CONF), version_base=None):
        return targets.call(compose(name))


def corners(regions):
    return [[x, y, x + width, y + height] for x, y, width, height in regions]


def same(first, second):
    (image, target), (other, others) = first, second
    return torch.equal(image, other) and all(torch.equal(target[name], others[name]) for name in target)


# Targets


def test_crowds_stand_apart_from_boxes():
    _, target = dataset()[0]
    assert target["boxes"].tolist() == corners(SQUARES)
    assert target["labels"].tolist() == [0, 1, 2]
    assert target["crowds"].tolist() == corners([CROWD])
    assert target["masks"].shape == (3, 64, 96)


def test_an_image_with_only_crowds_has_no_boxes():
    _, target = dataset(squares=())[0]
    assert [len(target[name]) for name in ("boxes", "labels", "masks", "crowds")] == [0, 0, 0, 1]


def test_an_image_as_wide_as_high_is_not_wide():
    made = dataset()
    assert made.is_wide == [True]
    made.coco.imgs[4]["height"] = 96
    assert made.is_wide == [False]


def test_masks_cover_their_pixels():
    (image, target), other = dataset()[0], dataset(crowds=())
    assert target["masks"].dtype == torch.uint8
    for mask, (x1, y1, x2, y2) in zip(target["masks"], corners(SQUARES), strict=True):
        assert mask.sum() == mask[y1:y2, x1:x2].sum() == (y2 - y1) * (x2 - x1)
    assert torch.equal(other[0][1]["masks"], target["masks"])
    assert torch.equal(other[0][0], (target["masks"].sum(0) > 0).expand_as(image).float())


def test_masks_given_as_runs_cover_their_pixels():
    _, target = dataset(SQUARES[:1], (), segmentation=runs(*SQUARES[1]))[0]
    [(x1, y1, x2, y2)] = corners(SQUARES[1:2])
    assert target["masks"].sum() == target["masks"][0, y1:y2, x1:x2].sum() == (y2 - y1) * (x2 - x1)


def test_masks_are_there_only_where_they_are_wanted():
    made = dataset(segmentation=None)
    made.masks = False
    assert made[0][1].keys() == {"boxes", "labels", "crowds", "image_id"}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (None, "has no segmentation; this model learns from masks"),
        ([], "has no segmentation"),
        ([[1, 1, 5, 5]], "segmentation is of no known form"),
        ({"size": [64, 96], "counts": [5, 9999]}, "segmentation is of no known form"),
        ({"size": [5, 5], "counts": [0, 25]}, "segmentation is not of its image's size"),
    ],
)
def test_an_object_without_a_usable_mask_is_named_where_masks_are_wanted(form, said):
    with pytest.raises(ValueError, match=f"^annotation 1: {said}"):
        dataset(segmentation=form)[0]


# Augmentation


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_seed_alone_decides_how_an_image_is_augmented(name):
    made, items = dataset(augment=augment(name)), []
    for state in range(3):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        items.append([made[0, seed] for seed in range(-4, 12)])
    assert all(same(first, item) for other in items[1:] for first, item in zip(items[0], other, strict=True))
    different = {image.numpy().tobytes() for image, _ in items[0]}
    assert len(different) >= {"none": 1, "flip": 2, "color": 8, "crop": 8}[name]


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmenting_leaves_the_states_of_chance_as_they_were(name, monkeypatch):
    # Seeding the GPU would tie what a model draws there to the images that were loaded in its process.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU is seeded"))
    made = dataset(augment=augment(name))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    made[0, 5]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("name", AUGMENTS)
def test_without_a_seed_nothing_is_augmented(name):
    plain, made = dataset()[0], dataset(augment=augment(name))
    assert all(same(plain, made[0]) for _ in range(5))
    assert all(same(plain, dataset()[0, seed]) for seed in range(5))  # nothing to augment with


@pytest.mark.parametrize("seed", range(6))
def test_a_flip_takes_crowds_and_masks_along(seed):
    image, target = dataset()[0]
    shown, flipped = dataset(augment=augment("flip"))[0, seed]
    turned = torch.equal(shown, image.flip(2))
    assert turned or torch.equal(shown, image)

    def expected(boxes):
        return torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], 1) if turned else boxes

    for regions in ("boxes", "crowds"):
        assert torch.equal(flipped[regions], expected(target[regions]))
    assert torch.equal(flipped["masks"], target["masks"].flip(2) if turned else target["masks"])
    assert torch.equal(flipped["labels"], target["labels"])


def on_white(regions, image):
    """Whether regions enclose all of something that stands out from its ground, and nothing else."""
    ground = image.flatten(1).median(1).values[:, None, None]
    white = torch.nn.functional.pad(((image - ground).abs() > 0.1).any(0), (1, 1, 1, 1))
    for x1, y1, x2, y2 in regions.round().int().tolist():
        inside, around = white[y1 + 1 : y2 + 1, x1 + 1 : x2 + 1], white[y1 : y2 + 2, x1 : x2 + 2]
        if not inside.all() or inside.numel() == 0 or around.sum() != inside.sum():
            return False
    return True


@pytest.mark.parametrize("name", AUGMENTS)
def test_boxes_and_crowds_and_masks_stay_on_what_they_show(name):
    made = dataset(augment=augment(name))
    sizes, numbers = set(), set()
    for seed in range(40):
        image, target = made[0, seed]
        assert image.min() >= 0
        assert image.max() <= 1
        assert on_white(torch.cat([target["boxes"], target["crowds"]]), image)
        for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            x1, y1, x2, y2 = box
            assert mask.sum() == mask[y1:y2, x1:x2].sum() == (y2 - y1) * (x2 - x1)
        assert target["masks"].shape[1:] == image.shape[1:]
        sizes.add(tuple(image.shape[1:]))
        numbers.add(len(target["boxes"]) + len(target["crowds"]))
    assert (len(sizes) > 9) is (name == "crop")
    assert numbers == {4} if name != "crop" else {1, 4} <= numbers <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("name", AUGMENTS)
def test_labels_stay_with_their_boxes(name):
    made = dataset([(8, 10, 14, 14), (40, 6, 12, 20), (70, 40, 17, 12)], augment=augment(name))
    for seed in range(40):
        _, target = made[0, seed]
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            # Cropping makes boxes smaller, never larger.
            assert x2 - x1 <= (14, 12, 17)[label]
            assert y2 - y1 <= (14, 20, 12)[label]
            assert name == "crop" or (x2 - x1, y2 - y1) == ((14, 14), (12, 20), (17, 12))[label]


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("crowds", [(), (CROWD,)])
def test_images_without_boxes_are_augmented_too(name, crowds):
    made = dataset((), crowds, augment(name))
    for seed in range(10):
        image, target = made[0, seed]
        assert image.shape[0] == 3
        assert [len(target[key]) for key in ("boxes", "labels", "masks")] == [0, 0, 0]
        assert len(target["crowds"]) == len(crowds)
        assert on_white(target["crowds"], image)


def cut(width, height):
    """Augments by cutting the second region and all crowds to this size."""

    def cut(image, target):
        boxes = target["boxes"].clone()
        for place in (1, *range(len(SQUARES), len(boxes))):
            boxes[place, 2:] = boxes[place, :2] + torch.tensor([width, height])
        return image, target | {"boxes": type(target["boxes"])(boxes, format="XYXY", canvas_size=SIZE[::-1])}

    return cut


@pytest.mark.parametrize(("size", "kept"), [((1, 1), True), ((0.9, 5), False), ((5, 0.9), False), ((0, 0), False)])
def test_boxes_cut_to_less_than_a_pixel_are_dropped(size, kept):
    _, target = dataset(augment=cut(*size))[0, 0]
    assert target["labels"].tolist() == ([0, 1, 2] if kept else [0, 2])
    assert [len(target[name]) for name in ("boxes", "masks")] == [2 + kept] * 2
    assert len(target["crowds"]) == kept
