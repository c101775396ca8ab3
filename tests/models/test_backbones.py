"""ResNets with pyramids: their levels and sizes, and where their weights come from."""

import pickle
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn

from ghm.losses import GHMC, GHMR, SmoothL1, SoftmaxCrossEntropy
from ghm.models import faster_rcnn, retinanet, stock_faster_rcnn, stock_mask_rcnn
from ghm.models.backbones import resnet_fpn

RESNETS = ["resnet50", "resnet101", "resnext101_32x8d"]
V1 = {"resnet50": "resnet50-0676ba61.pth", "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth"}  # as torchvision has it
LAST = 2048 * 1000 + 1000  # parameters of a classifier's last layer
NORMS = 53_120  # parameters of a ResNet-50's BatchNorms; torchvision froze those of its detectors


def on_meta(name="resnet50", weights=None, levels="P3-P7"):
    with torch.device("meta"):
        return resnet_fpn(name, weights, levels)


def published(name):
    """What torchvision says of its weights, of classifiers and detectors."""
    from torchvision.models import get_model_weights

    return get_model_weights(name)["DEFAULT"].meta["num_params"]


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


# Levels and sizes


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize(
    ("levels", "strides"),
    [
        ("P3-P7", {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}),
        ("P2-P6", {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}),
    ],
)
def test_pyramids_have_five_levels_of_256_channels(name, levels, strides):
    pyramid = on_meta(name, levels=levels)
    maps = pyramid(torch.rand(2, 3, 256, 384, device="meta"))
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        key: (2, 256, 256 // stride, 384 // stride) for key, stride in strides.items()
    }
    assert pyramid.out_channels == 256
    assert size(pyramid.body) == published(name) - LAST
    kinds = {type(module) for module in pyramid.body.modules() if "Norm" in type(module).__name__}
    assert kinds == {nn.GroupNorm}
    assert all(parameter.requires_grad for parameter in pyramid.parameters())


def test_p6_is_made_of_c5():
    extra = on_meta().fpn.extra_blocks
    c3, c5 = torch.rand(1, 512, 8, 8, device="meta"), torch.rand(1, 2048, 2, 2, device="meta")
    assert (extra.p6.in_channels, extra.p6.out_channels, extra.p7.in_channels) == (2048, 256, 256)
    p5 = torch.rand(1, 256, 2, 2, device="meta")
    maps, names = extra([p5], [c3, c5], ["p5"])  # p5 has too few channels for it
    assert [tuple(each.shape) for each in maps] == [(1, 256, 2, 2), (1, 256, 1, 1), (1, 256, 1, 1)]
    assert names == ["p5", "p6", "p7"]


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 37.97), ("resnet101", 56.96), ("resnext101_32x8d", 101.2)])
def test_the_papers_networks_are_as_large_as_published(name, millions):
    """mmdetection's RetinaNet has 37.7 million on ResNet-50, and as many more as the ResNets differ."""
    with torch.device("meta"):
        model = retinanet(name, 80, GHMC(), GHMR(), 0.01)
    assert size(model) / 1e6 == pytest.approx(millions, abs=0.01)


def test_two_stage_networks_are_as_large_as_torchvisions():
    with torch.device("meta"):
        boxes = faster_rcnn("resnet50", 90, SoftmaxCrossEntropy(), SmoothL1(), None)
        masks = stock_mask_rcnn("resnet50", 90, cls_loss=None, box_loss=None, prior=None)
    assert size(boxes) == published("fasterrcnn_resnet50_fpn") + NORMS
    assert size(masks) == published("maskrcnn_resnet50_fpn") + NORMS


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "resnet5"])
def test_an_unknown_backbone_is_named(name):
    with pytest.raises(ValueError, match=rf"^backbone={name}: must be one of resnet50, resnet101, resnext101_32x8d$"):
        on_meta(name)


# Weights


def classifier(name="resnet50"):
    """The state dict of a classifier whose values are its own."""
    from torchvision.models import get_model

    with torch.device("meta"):
        shapes = get_model(name).state_dict()
    generator = torch.Generator().manual_seed(7)
    return {
        key: torch.rand(each.shape, generator=generator).to(each.dtype) if each.shape else torch.tensor(3)
        for key, each in shapes.items()
    }


@pytest.fixture(scope="module")
def state():
    return classifier()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.pt"
    torch.save(state, path)
    return path


def assert_loaded(pyramid, state):
    loaded = pyramid.body.state_dict()
    assert {key.split(".")[0] for key in loaded} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    torch.testing.assert_close(loaded, {key: state[key] for key in loaded}, rtol=0, atol=0)


@pytest.mark.parametrize("levels", ["P3-P7", "P2-P6"])
def test_given_weights_are_loaded_on_meta_too_and_the_first_layers_frozen(file, state, levels):
    pyramid = on_meta(weights=str(file), levels=levels)
    assert_loaded(pyramid, state)
    frozen = {key.split(".")[0] for key, p in pyramid.body.named_parameters() if not p.requires_grad}
    learning = {key.split(".")[0] for key, p in pyramid.body.named_parameters() if p.requires_grad}
    assert (frozen, learning) == ({"conv1", "layer1"}, {"layer2", "layer3", "layer4"})
    assert all(parameter.requires_grad for parameter in pyramid.fpn.parameters())
    before = {key: value.clone() for key, value in pyramid.body.named_buffers()}
    pyramid.body.train()(torch.rand(2, 3, 32, 32))
    assert before
    assert all(torch.equal(value, before[key]) for key, value in pyramid.body.named_buffers())


def test_normalization_is_frozen_or_trained(file):
    def moved(norm):
        """Statistics and factors of normalization that a step of training changes."""
        pyramid = retinanet("resnet50", 3, GHMC(), GHMR(), 0.01, weights=str(file), norm=norm).backbone.train()
        before = {key: value.clone() for key, value in pyramid.body.named_buffers()}
        learns = {key for key, p in pyramid.body.named_parameters() if "bn" in key and p.requires_grad}
        pyramid(torch.rand(2, 3, 32, 32))
        return {key for key, value in pyramid.body.named_buffers() if not torch.equal(value, before[key])}, learns

    assert moved("frozen") == (set(), set())
    statistics, factors = moved("trained")
    assert {"layer2.0.bn1.running_mean", "layer4.2.bn3.running_var"} <= statistics
    assert {"layer2.0.bn1.weight", "layer4.2.bn3.bias"} <= factors
    with pytest.raises(ValueError, match=r"^norm=thawed: must be one of frozen, trained"):
        moved("thawed")


def test_weights_are_loaded_outside_of_meta(file, state):
    model = retinanet("resnet50", 3, GHMC(), GHMR(), 0.01, weights=str(file))
    assert_loaded(model.backbone, state)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_half_precision_weights_are_trained_in_full_precision(state, tmp_path):
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save(halved, tmp_path / "half.pt")
    assert_loaded(on_meta(weights=str(tmp_path / "half.pt")), {key: value.float() for key, value in halved.items()})


class Code:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    ran, path = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"conv1.weight": Code(ran)}, path)
    with pytest.raises(ValueError, match=r"^weights=.*weights.pt: not torchvision's state dict"):
        on_meta(weights=str(path))
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # it would have


def other(kind, state, path):
    """A file that holds something else."""
    some = {key: state[key] for key in ("conv1.weight", "bn1.weight")}
    if kind in ("resnet18", "resnet101"):
        torch.save(classifier(kind), path)
    elif kind == "text":
        path.write_text("<html>hello</html>")
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        held = {
            "shapes": {**state, "conv1.weight": torch.zeros(3, 3)},
            "one key less": {key: value for key, value in state.items() if key != "layer4.2.bn3.running_var"},
            "one key more": {**state, "layer4.3.conv1.weight": torch.zeros(3)},
            "empty": {},
            "nested": {"model": some},
            "numbers": dict.fromkeys(state, 3),
            "tensor": torch.zeros(3),
            "list": [1, 2],
            "other keys": {3: torch.zeros(3)},
        }
        torch.save(held[kind], path)


KINDS = ["absent", "text", "folder", "resnet18", "resnet101", "shapes", "one key less", "one key more"]
KINDS += ["empty", "nested", "numbers", "tensor", "list", "other keys"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_anything_else_is_named(state, tmp_path, kind):
    path = tmp_path / "other.pt"
    other(kind, state, path)
    said = "no such file; give the path of one, or one of IMAGENET1K_V1, IMAGENET1K_V2"
    said = said if kind == "absent" else r"not torchvision's state dict of this backbone \(.+\); give the path of one$"
    with pytest.raises(ValueError, match=rf"^weights={path}: {said}") as raised:
        on_meta(weights=str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("make", [retinanet, faster_rcnn, stock_faster_rcnn, stock_mask_rcnn])
def test_every_network_asks_for_its_weights(make):
    losses = (None, None) if make in (stock_faster_rcnn, stock_mask_rcnn) else (GHMC(), GHMR())
    with torch.device("meta"), pytest.raises(ValueError, match=r"^weights=absent.pt: no such file"):
        make("resnet101", 3, cls_loss=losses[0], box_loss=losses[1], prior=None, weights="absent.pt")


@pytest.mark.parametrize("name", ["IMAGENET1K_V3", "imagenet1k_v1", "models/IMAGENET1K_V1", ""])
def test_names_that_torchvision_does_not_know_are_taken_for_files(name):
    with pytest.raises(ValueError, match=rf"^weights={name}: no such file; .* one of IMAGENET1K_V1, IMAGENET1K_V2"):
        on_meta(weights=name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torchvision's folder of fetched weights, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)

    def none(*arguments, **options):
        raise URLError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", none)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_named_weights_are_read_from_torchvisions_cache(cache, file, state):
    cache.mkdir(parents=True)
    (cache / V1["resnet50"]).symlink_to(file)
    assert_loaded(on_meta(weights="IMAGENET1K_V1"), state)


def test_a_file_beside_the_run_is_not_taken_for_a_name(cache, tmp_path):
    torch.save({}, tmp_path / "IMAGENET1K_V1")
    with pytest.raises(ValueError, match="could not be fetched"):
        on_meta(weights="IMAGENET1K_V1")


@pytest.mark.parametrize("name", V1)
@pytest.mark.parametrize(
    "error",
    [
        None,
        URLError("[Errno -3] Temporary failure\nin name resolution"),
        HTTPError("https://download.pytorch.org", 403, "Forbidden", None, None),
        RuntimeError('invalid hash value (expected "0676ba61", got "1234")'),
        PermissionError(13, "Permission denied"),
    ],
)
def test_without_cache_and_network_one_line_says_what_to_fetch_and_where_to_put_it(cache, monkeypatch, name, error):
    def refuse(*arguments, **options):
        raise error

    if error is not None:
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match=r"^weights=IMAGENET1K_V1: could not be fetched \(.+\); fetch ") as raised:
        on_meta(name, weights="IMAGENET1K_V1")
    text = str(raised.value)
    assert f"fetch https://download.pytorch.org/models/{V1[name]} yourself and put it at {cache / V1[name]}, " in text
    assert text.endswith("give its path as model.weights=PATH")
    assert "\n" not in text


def test_the_network_is_asked_to_keep_to_weights_and_their_hash(monkeypatch, state):
    asked = {}

    def fetch(url, **options):
        asked.update(options, url=url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    assert_loaded(on_meta(weights="IMAGENET1K_V1"), state)
    assert asked["url"].endswith(V1["resnet50"])
    assert asked["check_hash"]
    assert asked["weights_only"]


@pytest.mark.parametrize("held", [b"<html>Sign in</html>", b"", pickle.dumps({"conv1.weight": 3}, protocol=2), b"code"])
def test_what_is_no_state_dict_in_the_cache_is_named(cache, tmp_path, held):
    cache.mkdir(parents=True)
    (cache / V1["resnet50"]).write_bytes(held)
    if held == b"code":
        torch.save({"conv1.weight": Code(tmp_path / "ran")}, cache / V1["resnet50"])
    with pytest.raises(ValueError, match=r"^weights=IMAGENET1K_V1: ") as raised:
        on_meta(weights="IMAGENET1K_V1")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
