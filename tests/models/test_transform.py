"""How images and what is marked in them become one batch."""

import pytest
import torch

from ghm.models.transform import MEAN, STD, InputTransform


def target(**more):
    return {"boxes": torch.tensor([[10.0, 20, 30, 40]]), "crowds": torch.tensor([[0.0, 8, 64, 16]]), **more}


@pytest.mark.parametrize(
    ("min_size", "max_size", "size", "scaled"),
    [
        (128, 400, (64, 96), (2.0, 2.0)),
        (32, 400, (64, 96), (0.5, 0.5)),
        (128, 96, (64, 96), (1.0, 1.0)),  # the long side decides
        (None, 48, (64, 96), (0.5, 0.5)),
        (None, 96, (64, 96), (1.0, 1.0)),
        (None, 500, (64, 96), (1.0, 1.0)),  # nothing is enlarged
        (32, 400, (63, 96), (32 / 63, 48 / 96)),  # rounded to whole pixels, each side by itself
    ],
)
def test_image_boxes_and_crowds_are_scaled_alike(min_size, max_size, size, scaled):
    given, before = target(), target()
    images, [after] = InputTransform(min_size, max_size)([torch.rand(3, *size)], [given])
    down, right = scaled
    assert images.image_sizes == [(round(size[0] * down), round(size[1] * right))]
    for name in ("boxes", "crowds"):
        torch.testing.assert_close(after[name], before[name] * torch.tensor([right, down, right, down]))
        assert torch.equal(given[name], before[name])  # the loader's own stay as they are


def test_targets_may_be_without_crowds_and_crowds_without_boxes():
    transform, image = InputTransform(128, 400), torch.rand(3, 64, 64)
    none = torch.zeros(0, 4)
    _, plain = transform([image], [{"boxes": target()["boxes"]}])
    assert plain[0].keys() == {"boxes", "size"}
    _, [both] = transform([image], [{"boxes": none, "crowds": none}])
    assert both["crowds"].shape == (0, 4)
    _, [alone] = transform([image], [target(boxes=none)])
    assert alone["crowds"].tolist() == [[0, 16, 128, 32]]


def test_images_are_normalised_as_on_imagenet_and_padded_with_zeros():
    images, _ = InputTransform(None, 400)([torch.rand(3, 40, 40), torch.rand(3, 33, 70)])
    assert images.tensors.shape == (2, 3, 64, 96)
    assert images.tensors[0, :, 40:].eq(0).all()
    plain = torch.rand(3, 40, 40)
    normal = InputTransform(None, 400)([plain])[0].tensors[0, :, :40, :40]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(normal * std + mean, plain)
    assert MEAN == [0.485, 0.456, 0.406]
    assert STD == [0.229, 0.224, 0.225]


def test_of_several_sizes_one_is_drawn_in_training_and_the_last_taken_in_evaluation():
    transform, image = InputTransform([32, 48, 64], 400), torch.rand(3, 16, 16)
    torch.manual_seed(0)
    drawn = [transform([image, image])[0].image_sizes for _ in range(20)]
    assert {side for pair in drawn for side in pair} == {(32, 32), (48, 48), (64, 64)}
    assert any(one != other for one, other in drawn)  # for each image
    transform.eval()
    assert {transform([image])[0].image_sizes[0] for _ in range(5)} == {(64, 64)}


@pytest.mark.parametrize(
    ("min_size", "max_size", "named"),
    [
        (0, 100, "min_size=0"),
        (-1, 100, "min_size=-1"),
        (80.5, 100, "min_size=80.5"),
        ("800", 100, "min_size=800"),
        ([], 100, "min_size=[]"),
        ([64, 0], 100, "min_size=[64, 0]"),
        ([64, None], 100, "min_size=[64, None]"),
        (64, 0, "max_size=0"),
        (None, 0, "max_size=0"),
        (None, None, "max_size=None"),
        (64, None, "max_size=None"),
        (64, [100], "max_size=[100]"),
        (64, 1e3, "max_size=1000.0"),
    ],
)
def test_a_bad_size_is_named(min_size, max_size, named):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        InputTransform(min_size, max_size)
    assert str(raised.value) == f"{named}: must be a whole number of pixels above 0"
