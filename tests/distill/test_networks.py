"""Any network as the teacher of hidden layers, with random weights."""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from yolo_mkd import host
from yolo_mkd.chain.stages import validate
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.network_files import load_network
from yolo_mkd.distill.networks import READINGS, Network, NetworkTeacher, map_of, network_spec
from yolo_mkd.distill.normalisation import normalisation_warning, read_images
from yolo_mkd.distill.sources import checksum, find_teachers, present
from yolo_mkd.knowledge import LossWeights, Targets
from yolo_mkd.settings import BadInput
from yolo_mkd.trainer import MKDTrainer

IMGSZ = 128
HIDDEN = {"attention": 1.0, "relation": 1.0, "guidance": 1.0}


class Cnn(nn.Module):
    """Four stages of two blocks that halve the image, and a classifier after them."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 8, 16, 24, 32, 40]
        stages = []
        for before, after in itertools.pairwise(widths):
            first = nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
            stages.append(nn.Sequential(Block(first), Block(nn.Conv2d(after, after, 3, 1, 1))))
        self.stages, self.out = nn.Sequential(*stages), nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.stages(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Vit(nn.Module):
    """A vision transformer of six blocks on patches of 16 pixels with a class token."""

    input_size = 64

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 12, 16, 16), nn.Parameter(torch.full((1, 1, 12), 9.0))
        self.blocks = nn.ModuleList(Block(nn.Linear(12, 12)) for _ in range(6))
        self.out = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x[:, 0])


def distilled(model: Any, network: nn.Module) -> tuple[dict[str, torch.Tensor], Distiller, NetworkTeacher]:
    """The losses between a student and a network on random images."""
    spec = host.model_spec(model, IMGSZ)
    teacher_spec, maps = network_spec(Network("net", network, network), spec, IMGSZ)
    distiller = Distiller(spec, teacher_spec, {**HIDDEN, "soft": 1.0})
    teacher = NetworkTeacher("net", Network("net", network, network), maps, distiller.roles)
    images = torch.rand(2, 3, IMGSZ, IMGSZ)
    extractor = FeatureExtractor(model, spec, distiller.roles)
    ks = extractor.collect(model(images))
    targets = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    losses = distiller.losses(ks, teacher({"img": images}), targets, LossWeights())
    extractor.hooks.remove()
    return losses, distiller, teacher


def test_a_network_equal_to_the_student_gives_no_loss(student: Any, layers_of: Any) -> None:
    losses, distiller, _ = distilled(student, layers_of(copy.deepcopy(student), IMGSZ))
    assert {t.name: bool(t.why_not) for t in distiller.terms} == {"soft": True, **dict.fromkeys(HIDDEN, False)}
    assert distiller.term("soft").why_not == "the teacher has no detection head"
    assert set(distiller.roles) == set(host.model_spec(student, IMGSZ).layers)
    assert float(losses["attention"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["relation"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("network", [Cnn, Vit])
def test_gradients_reach_the_trunk_whatever_the_widths_and_strides(network: Any, student: Any) -> None:
    losses, _, teacher = distilled(student, network())
    assert set(losses) == set(HIDDEN)
    first = student.model[0].conv.weight
    for name, loss in losses.items():
        assert float(loss) > 0, name
        (gradient,) = torch.autograd.grad(loss, first, retain_graph=True)
        assert gradient.abs().max() > 0, name
    assert not any(p.requires_grad for p in teacher.model.parameters())


HEADLESS = {  # terms that read a head, and why they do not act
    **dict.fromkeys(
        ("soft", "soft_box", "soft_dfl", "localization", "score_l2", "head_guidance", "object_guidance",
         "class_attention", "error_focus"), "the teacher has no detection head",
    ),
    "soft_mask": "neither head has masks", "soft_keypoint": "neither head has keypoints",
    "soft_obb": "neither head has oriented boxes",
}  # fmt: skip


@pytest.mark.parametrize("network", [Cnn, Vit])
def test_every_term_acts_or_says_why_it_cannot(network: Any, student: Any) -> None:
    model, spec = network(), host.model_spec(student, IMGSZ)
    teacher_spec, maps = network_spec(Network("net", model, model), spec, IMGSZ)
    distiller = Distiller(spec, teacher_spec, dict.fromkeys(TERMS, 1.0))
    assert {t.name: t.why_not for t in distiller.terms if t.why_not} == HEADLESS
    teacher = NetworkTeacher("net", Network("net", model, model), maps, distiller.roles)
    images, boxes = torch.rand(2, 3, IMGSZ, IMGSZ), torch.tensor([[0.3, 0.4, 0.5, 0.6], [0.6, 0.5, 0.3, 0.9]] * 3)
    extractor = FeatureExtractor(student, spec, distiller.roles)
    ks = extractor.collect(student(images))
    targets = Targets(boxes, torch.tensor([0, 0, 0, 1, 1, 1]), classes=torch.zeros(6, dtype=torch.long))
    losses = distiller.losses(ks, teacher({"img": images}), targets, LossWeights())
    extractor.hooks.remove()
    assert set(losses) == set(TERMS) - set(HEADLESS)
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, student.model[0].conv.weight, retain_graph=True)
        assert loss.isfinite() and gradient.abs().max() > 0, name


def test_a_cnns_blocks_are_matched_by_stride_the_last_ones_with_the_neck(student: Any) -> None:
    spec = host.model_spec(student, IMGSZ)
    found, maps = network_spec(Network("net", Cnn(), None), spec, IMGSZ)
    places = {role: maps[role].place for role in spec.layers}
    assert places == {
        "backbone_p3": "stages.2.0", "neck_p3": "stages.2.1", "backbone_p4": "stages.3.0", "neck_p4": "stages.3.1",
        "backbone_p5": "stages.4.0", "neck_p5": "stages.4.1",
    }  # fmt: skip
    assert [found.layers[f"neck_p{i}"].channels for i in (3, 4, 5)] == [24, 32, 40]
    assert found.layers["neck_p4"].rows == 8


def test_patch_tokens_become_a_map_without_the_class_token(student: Any) -> None:
    found, maps = network_spec(Network("net", Vit(), Vit), host.model_spec(student, IMGSZ), IMGSZ)
    assert [maps[r].place for r in found.layers] == [f"blocks.{i}" for i in range(6)]  # spread over the depth
    assert (found.layers["neck_p5"].rows, maps["neck_p5"].tokens) == (4, 1)
    tokens = torch.arange(17.0).view(1, 17, 1)
    assert maps["neck_p5"].of(tokens)[0, 0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 7, 4, 4), (None, 7, 4)),
        ((1, 4, 4, 7), (None, 7, 4)),
        ((1, 197, 7), (1, 7, 14)),
        ((1, 201, 7), (5, 7, 14)),
        ((1, 84, 8400), None),  # a detector's boxes: 9 x 9 positions and three tokens are no part of 224 pixels
        ((64, 49, 7), None),  # windows of one image
        ((1, 10), None),
        ((), None),
    ],
)
def test_maps_are_recognised_by_their_shape(shape: tuple[int, ...], found: tuple[int | None, int, int] | None) -> None:
    read = map_of("x", True, torch.zeros(shape), 224)
    assert found == (None if read is None else (read.tokens, read.channels, read.rows))
    if read is not None:
        assert read.of(torch.zeros(shape)).shape == (1, read.channels, read.rows, read.rows)


def test_images_are_read_as_the_network_declares() -> None:
    declared = type("D", (), {"mean": (0.5, 0, 0), "std": (0.5, 1, 2), "channel_order": "BGR", "input_size": 32})
    network = Network("net", Cnn(), declared)
    image = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1).expand(-1, -1, 64, 64)
    out = network.prepared(image)
    assert out.shape == (1, 3, 32, 32)
    assert out[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.5) / 0.5, 0.5, 0.25 / 2])


@pytest.mark.parametrize(
    ("reading", "bgr"), [("ImageNet's mean and std", False), ("Caffe's mean, images in [0, 255]", True)]
)
def test_a_wrong_normalisation_is_named(reading: str, bgr: bool, untrained_detector: Any) -> None:
    torch.manual_seed(0)
    trained, order = Cnn().train(), "BGR" if bgr else "RGB"
    mean, std = READINGS[reading]
    declared = SimpleNamespace(mean=mean, std=std, channel_order=order)
    right = Network("net", trained, declared)
    trained.train()
    for _ in range(100):  # statistics of images that are read in this way
        trained(right.prepared(read_images(untrained_detector.images[:8], 64)))
    assert normalisation_warning(Network("net", trained, declared), untrained_detector.images, 64) == ""
    warning = normalisation_warning(Network("net", trained, None), untrained_detector.images, 64)
    assert warning.startswith(f"teacher=net: its batch normalisation fits {reading}, {order} (")


def test_a_backbone_that_returns_its_last_map_is_read_at_its_blocks(student: Any) -> None:
    spec = host.model_spec(student, IMGSZ)
    _, maps = network_spec(Network("net", Cnn().stages, None), spec, IMGSZ)
    assert [maps[f"neck_p{i}"].place for i in (3, 4, 5)] == ["2.1", "3.1", "4.1"]
    alone = nn.Conv2d(3, 8, 16, 16)  # no block
    _, maps = network_spec(Network("net", alone, None), spec, IMGSZ)
    assert list(maps) == ["neck_p4"] and not maps["neck_p4"].hooked


# How they are named


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A file of the user's that builds the network above."""
    file = tmp_path / "mine.py"
    here = Path(__file__).resolve()
    file.write_text(
        f"import sys; sys.path.insert(0, {str(here.parent)!r})\nfrom {here.stem} import Cnn, Vit\n"
        "def build(): return Cnn()\ndef nothing(): return 3\ndef fails(): raise ValueError('no weights')\n"
        "import torch\nclass Flat(torch.nn.Module):\n    def forward(self, x): return x.mean((2, 3))\n"
        "def flat(): return Flat()\n"
    )
    return str(file)


def test_a_function_is_run_only_if_it_is_trusted(mine: str) -> None:
    with pytest.raises(BadInput, match=r"mine.py:build is a program, and is run only with trust=true"):
        find_teachers(f"{mine}:build")
    with host.trusting(True):
        (found,) = find_teachers(f"{mine}:build")
        assert isinstance(load_network(found).model, nn.Module)
    assert present(found) and not present("other.py:build")
    before = checksum(found)
    Path(mine).write_text("")
    assert checksum(found) != before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "mine.py:missing cannot be loaded as the function .module 'yolo_mkd_teacher' has no attribute"),
        ("nothing", "mine.py:nothing returned an object of type int: return a torch.nn.Module"),
        ("fails", "mine.py:fails cannot be loaded as the function .no weights.$"),
        ("flat", "mine.py:flat: no map of it fits a layer of the student at 128 pixels .found: none.: return maps"),
    ],
)
def test_a_function_that_is_no_teacher_is_refused_in_one_line(
    function: str, message: str, mine: str, student: Any
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        network_spec(load_network(f"{mine}:{function}"), host.model_spec(student, IMGSZ), IMGSZ)
    assert "\n" not in str(refused.value)


def test_torchscript_teaches_with_what_it_returns(tmp_path: Path, student: Any) -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 8, 8), nn.Conv2d(3, 6, 16, 16)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(x)

    file = str(tmp_path / "net.torchscript")
    torch.jit.trace(Maps().eval(), torch.rand(1, 3, IMGSZ, IMGSZ)).save(file)
    network = load_network(file)
    found, maps = network_spec(network, host.model_spec(student, IMGSZ), IMGSZ)
    assert {r: layer.channels for r, layer in found.layers.items()} == {"neck_p3": 5, "neck_p4": 6}
    features = NetworkTeacher("net", network, maps, list(maps)).infer(torch.rand(2, 3, IMGSZ, IMGSZ)).features
    assert features["neck_p3"].shape == (2, 5, 16, 16)
    (tmp_path / "text.torchscript").write_text("no archive")
    with pytest.raises(BadInput, match=r"text.torchscript cannot be loaded as TorchScript"):
        load_network(str(tmp_path / "text.torchscript"))


def test_a_network_of_torchvision_needs_its_weights_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: Any
) -> None:
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="torchvision has no model of that name"):
        load_network("torchvision:resnet7")
    missing = (
        r"its weights are not on this disk \(.*, from https://.*\), and they are downloaded only with download=true"
    )
    with pytest.raises(BadInput, match=missing):
        load_network("torchvision:resnet18")
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    place = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    place.parent.mkdir(parents=True)
    place.write_text("damaged")
    with pytest.raises(BadInput, match=r"torchvision:resnet18: its weights cannot be loaded .*: fetch them again$"):
        load_network("torchvision:resnet18")
    torch.save(torchvision.models.resnet18().state_dict(), place)
    network = load_network("torchvision:resnet18")
    assert network.mean == pytest.approx((0.485, 0.456, 0.406))
    _, maps = network_spec(network, host.model_spec(student, IMGSZ), IMGSZ)
    assert [maps[f"neck_p{i}"].place for i in (3, 4, 5)] == ["layer2.1", "layer3.1", "layer4.1"]


# In a training


def arguments_of(mine: str, detector: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(detector.student), "teacher": f"{mine}:build", "data": str(detector.data), "imgsz": 64,
        "project": str(tmp_path / "runs"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"record": True},
            "record= stores what a detector computes, and .*mine.py:build is a network whose maps are too large",
        ),
        ({"teacher_epochs": 1}, "teacher_epochs= trains one model: give one .yaml or .pt"),
        ({"start": "slice"}, "start=slice takes its weights from one model"),
        ({"attention": 0, "relation": 0, "guidance": 0, "exploration": 0}, "no distillation term applies to teacher="),
    ],
)
def test_what_a_network_cannot_do_is_refused(
    change: dict[str, Any], message: str, mine: str, untrained_detector: Any, tmp_path: Path
) -> None:
    with host.trusting(True), pytest.raises(BadInput, match=message):
        validate({**arguments_of(mine, untrained_detector, tmp_path), **change}, "train")


def test_an_image_size_that_a_network_cannot_take_is_refused(
    mine: str, untrained_detector: Any, tmp_path: Path
) -> None:
    arguments = {**arguments_of(mine, untrained_detector, tmp_path), "teacher": f"{mine}:Vit", "teacher_imgsz": 96}
    with host.trusting(True), pytest.raises(BadInput, match=r"teacher_imgsz=96, but teacher=.*:Vit takes images of 64"):
        validate(arguments, "train")
    with host.trusting(True):
        validate({**arguments, "teacher_imgsz": None}, "train")


@pytest.mark.slow
def test_a_student_of_a_network_is_a_stock_checkpoint(mine: str, untrained_detector: Any, tmp_path: Path) -> None:
    from yolo_mkd import chain

    short = {"epochs": 1, "batch": 8, "fraction": 0.25, "plots": False, "device": "cpu", "val": False}
    folder, record = chain.train(**arguments_of(mine, untrained_detector, tmp_path), **short, trust=True)
    assert record["teacher"] == {"file": f"{mine}:build", "sha256": checksum(f"{mine}:build")}
    assert (folder / "student" / "results.csv").read_text().split("\n")[0].count("kd/attention") == 1
    best = host.load_detector("model", record["stages"][0]["weights"])  # without trust: no code of the teacher's
    assert set(best.state_dict()) == set(host.load_detector("model", str(untrained_detector.pt)).state_dict())
    assert not any("mine" in name for name in sys.modules if name.startswith("yolo_mkd."))
    assert MKDTrainer.using(f"{mine}:build", trust=True).teachers == (f"{mine}:build",)
