"""Networks of timm and in ONNX files as teachers of hidden layers, with random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from yolo_mkd import host
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.network_files import load_network
from yolo_mkd.distill.networks import NetworkTeacher, network_spec
from yolo_mkd.distill.onnx_network import passages
from yolo_mkd.distill.sources import checksum, find_teachers
from yolo_mkd.knowledge import LossWeights, Targets
from yolo_mkd.settings import BadInput

IMGSZ = 128
VIT = "timm:test_vit.r160_in1k"


class Residual(nn.Module):
    """A classifier of a convolution and two residual blocks at each of the strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 16, 2, 2), nn.Conv2d(16, 24, 2, 2)])
        self.sides = nn.ModuleList(nn.Conv2d(c, c, 3, 1, 1) for c in (8, 8, 16, 16, 24, 24))
        self.out = nn.Linear(24, 10)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for i, side in enumerate(self.sides):
            x = self.downs[i // 2](x) if i % 2 == 0 else x
            x = x + side(x).relu()
            found.append(x)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.maps(x)[-1].mean((2, 3)))


class Backbone(Residual):
    """The same without its classifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps(x)[-1]


def exported(model: nn.Module, file: Path, size: int = IMGSZ, **declared: str) -> str:
    """The path of a module's ONNX file with a batch of any size, and metadata."""
    axes = {"images": {0: "batch"}}
    images = torch.rand(1, 3, size, size)
    torch.onnx.export(
        model.eval(), (images,), str(file), input_names=["images"], dynamic_axes=axes, dynamo=False, verbose=False
    )
    changed = onnx.load(str(file))
    onnx.helper.set_model_props(changed, declared)
    onnx.save(changed, str(file))
    return str(file)


def losses_of(model: Any, name: str) -> tuple[dict[str, torch.Tensor], Distiller]:
    """The losses between a student and a network on random images."""
    spec, network = host.model_spec(model, IMGSZ), load_network(name)
    teacher_spec, maps = network_spec(network, spec, IMGSZ)
    distiller = Distiller(spec, teacher_spec, {"soft": 1.0, "attention": 1.0, "relation": 1.0, "guidance": 1.0})
    teacher = NetworkTeacher("net", network, maps, distiller.roles)
    images = torch.rand(2, 3, IMGSZ, IMGSZ)
    extractor = FeatureExtractor(model, spec, distiller.roles)
    ks = extractor.collect(model(images))
    targets = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    losses = distiller.losses(ks, teacher({"img": images}), targets, LossWeights())
    extractor.hooks.remove()
    return losses, distiller


# ONNX


def test_an_onnx_file_equal_to_the_student_gives_no_loss(tmp_path: Path, student: Any, layers_of: Any) -> None:
    same = layers_of(copy.deepcopy(student), IMGSZ, named=False)
    losses, distiller = losses_of(student, exported(same, tmp_path / "same.onnx"))
    assert distiller.term("soft").why_not == "the teacher has no detection head"
    assert set(distiller.roles) == set(host.model_spec(student, IMGSZ).layers)
    assert float(losses["attention"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["relation"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["guidance"]) > 0  # its layers are random at first


@pytest.mark.parametrize("kind", [Residual, Backbone])
def test_an_onnx_file_without_maps_is_read_where_all_features_pass(kind: Any, tmp_path: Path, student: Any) -> None:
    model = kind()
    network = load_network(exported(model, tmp_path / "net.onnx"))
    weights = [w for name, w in model.named_parameters() if kind is Residual or "out" not in name]
    assert network.size == IMGSZ and network.parameters == sum(w.numel() for w in weights)
    spec = host.model_spec(student, IMGSZ)
    found, maps = network_spec(network, spec, IMGSZ)
    assert {r: layer.channels for r, layer in found.layers.items() if r.startswith("neck")} == {
        "neck_p3": 8, "neck_p4": 16, "neck_p5": 24,
    }  # fmt: skip
    images = torch.rand(2, 3, IMGSZ, IMGSZ)
    features = NetworkTeacher("net", network, maps, list(maps)).infer(images).features
    with torch.no_grad():
        expected = model.maps(images)
    for role, i in {"backbone_p3": 0, "neck_p3": 1, "neck_p4": 3, "neck_p5": 5}.items():
        torch.testing.assert_close(features[role], expected[i], rtol=1e-4, atol=1e-5)


def test_features_pass_a_tensor_only_if_no_branch_goes_around_it() -> None:
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Relu", ["x"], ["a"]),
            node("Shape", ["a"], ["s"]),  # holds no features
            node("Relu", ["a"], ["b"]),
            node("Relu", ["b"], ["c"]),
            node("Add", ["a", "c"], ["d"]),  # around b and c
            node("Relu", ["a"], ["unused"]),
            node("Mul", ["d", "d"], ["e"]),
            node("Reshape", ["e", "s"], ["y"]),
        ],
        "g",
        [],
        [onnx.helper.make_empty_tensor_value_info("y")],
    )
    assert passages(graph, "x") == ["a", "d", "e", "y"]


def test_metadata_of_an_onnx_file_declare_its_maps_and_how_it_takes_images(tmp_path: Path, student: Any) -> None:
    plain = exported(Residual(), tmp_path / "plain.onnx")
    inner = [n.output[0] for n in onnx.load(plain).graph.node if n.op_type == "Relu"][3]
    file = exported(Residual(), tmp_path / "net.onnx", maps=inner, mean="0.5,0.4,0.3", std="0.2,0.2,0.1")
    network = load_network(file)
    assert (network.mean, network.std, network.size) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), IMGSZ)
    _, maps = network_spec(network, host.model_spec(student, IMGSZ), IMGSZ)
    assert {role: m.place for role, m in maps.items()} == {"neck_p4": inner}


def test_an_onnx_file_of_one_image_runs_image_by_image_with_weights_beside_it(tmp_path: Path, student: Any) -> None:
    model = Residual()
    file = exported(model, tmp_path / "net.onnx")
    alone = onnx.load(file)
    alone.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(alone, file, save_as_external_data=True, location="net.weights", size_threshold=0)
    network = load_network(file)
    _, maps = network_spec(network, host.model_spec(student, IMGSZ), IMGSZ)
    images = torch.rand(3, 3, IMGSZ, IMGSZ)
    with torch.no_grad():
        expected = model.maps(images)[-1]
    features = NetworkTeacher("net", network, maps, ["neck_p5"]).infer(images).features
    torch.testing.assert_close(features["neck_p5"], expected, rtol=1e-4, atol=1e-5)
    before = checksum(file)
    weights = tmp_path / "net.weights"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert checksum(file) != before


def broken(tmp_path: Path, what: str) -> str:
    """An ONNX file that is no teacher."""
    file = tmp_path / "net.onnx"
    if what == "text":
        file.write_text("no network")
        return str(file)
    declared = {"maps": {"maps": "nowhere"}, "mean": {"mean": "red"}, "order": {"channel_order": "GRB"}}.get(what, {})
    exported(Residual(), file, **declared)
    model = onnx.load(str(file))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if what == "two":
        model.graph.input.append(onnx.helper.make_tensor_value_info("scale", 1, [1]))
    if what == "grey":
        dims[1].dim_value = 1
    if what == "wide":
        dims[3].dim_value = 64
    if what == "size":
        dims[2].dim_value = dims[3].dim_value = 7
    if what == "no map":
        kept = model.graph.output[0].name
        one = onnx.helper.make_node("GlobalMaxPool", ["images"], [kept])
        del model.graph.node[:]
        model.graph.node.append(one)
    onnx.save(model, str(file))
    return str(file)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", r"net.onnx cannot be loaded as ONNX \(.*\)$"),
        ("maps", "maps= in its metadata names nowhere, which its graph does not compute"),
        ("mean", "mean=red in its metadata must be numbers, for example 224"),
        ("order", "must declare mean and std as three numbers each and channel_order as RGB or BGR"),
        ("two", r"must have one input of float images, .*\(found: images batchx3x128x128, scale 1\): export it so"),
        ("grey", r"must have one input of float images, .*\(found: images batchx1x128x128\): export it so"),
        ("wide", "takes images of 128x64 pixels: export it for square images"),
        ("size", "its input_size must be a whole number of pixels, for example 224"),
        ("no map", r"no map of it fits a layer of the student at 128 pixels \(found: none\)"),
    ],
)
def test_an_onnx_file_that_is_no_teacher_is_refused_in_one_line(
    what: str, message: str, tmp_path: Path, student: Any
) -> None:
    file = broken(tmp_path, what)
    assert find_teachers(file) == [file]  # it holds no code, so that it needs no trust
    assert len(checksum(file)) == 64  # as a comparison computes it before it loads it
    with pytest.raises(BadInput, match=message) as refused:
        network_spec(load_network(file), host.model_spec(student, IMGSZ), IMGSZ)
    assert "\n" not in str(refused.value)


# timm


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network of timm whose random weights are in a cache of Hugging Face's form."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / f"models--{timm.get_pretrained_cfg('test_vit').hf_hub_id.replace('/', '--')}"
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    torch.manual_seed(1)
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), place / "snapshots" / "abc" / "model.safetensors")
    load_network.cache_clear()
    return model


def test_a_vision_transformer_of_timm_teaches_with_its_patches(cached: Any, student: Any) -> None:
    assert find_teachers(VIT) == [VIT]
    network = load_network(VIT)
    assert (network.size, network.mean, network.std) == (160, (0.5,) * 3, (0.5,) * 3)
    found, maps = network_spec(network, host.model_spec(student, IMGSZ), IMGSZ)
    images = torch.rand(2, 3, 160, 160)
    features = NetworkTeacher("net", network, maps, list(maps)).infer(images).features
    with torch.no_grad():
        expected = cached.forward_intermediates(images * 2 - 1, norm=False, intermediates_only=True)
    assert len(expected) == len(features) == 6
    for (role, feature), theirs in zip(features.items(), expected, strict=True):  # six blocks for six layers, in order
        assert found.layers[role].rows == 10
        torch.testing.assert_close(feature, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm", "onnx"])
def test_gradients_of_every_hidden_term_reach_the_trunk(name: str, tmp_path: Path, cached: Any, student: Any) -> None:
    teacher = VIT if name == "timm" else exported(Residual(), tmp_path / "net.onnx")
    losses, _ = losses_of(student, teacher)
    assert set(losses) == {"attention", "relation", "guidance"}
    for term, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, student.model[0].conv.weight, retain_graph=True)
        assert float(loss) > 0 and gradient.abs().max() > 0, term


def test_weights_of_timm_are_fetched_only_when_asked_for_and_online(
    cached: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm

    for name in ("nothing", "test_vit.nothing", "resnet10t.untrained"):
        with pytest.raises(BadInput, match=rf"teacher=timm:{name}: timm has no weights of that name"):
            load_network(f"timm:{name}")
    fetched = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: fetched.append(name) or create(name))
    missing = r"timm:test_resnet: its weights are not on this disk \(timm/test_resnet.r160_in1k\)"
    with pytest.raises(BadInput, match=missing + ", and they are downloaded only with download=true"):
        load_network("timm:test_resnet")
    asked = host.permitting(lambda: load_network("timm:test_resnet"))
    monkeypatch.setattr(host, "is_online", lambda: False)
    with pytest.raises(BadInput, match=missing + ", and this machine is offline"):
        asked(download=True)
    assert fetched == []
    monkeypatch.setattr(host, "is_online", lambda: True)
    assert asked(download=True).size is None  # a convolutional network takes any size
    assert fetched == ["test_resnet"]


def test_damaged_weights_of_timm_are_named_in_one_line(cached: Any, tmp_path: Path) -> None:
    (file,) = tmp_path.glob("**/model.safetensors")
    file.write_bytes(b"damaged")
    with pytest.raises(BadInput, match=rf"teacher={VIT}: its weights cannot be loaded \(.*\): fetch them again"):
        load_network(VIT)


def test_timm_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    load_network.cache_clear()
    with pytest.raises(BadInput, match=rf"teacher={VIT} needs the package timm, which is not installed: pip install"):
        load_network(VIT)


@pytest.mark.slow
def test_a_student_of_onnx_and_timm_is_a_stock_checkpoint(cached: Any, untrained_detector: Any, tmp_path: Path) -> None:
    from yolo_mkd import chain

    file = exported(Residual(), tmp_path / "net.onnx", size=64)
    short = {"epochs": 1, "batch": 8, "fraction": 0.25, "plots": False, "device": "cpu", "val": False, "imgsz": 64}
    folder, record = chain.train(
        model=str(untrained_detector.student), teacher=f"{file},{VIT}", teachers="drawn",
        data=str(untrained_detector.data), project=str(tmp_path / "runs"), **short,
    )  # fmt: skip
    assert {row.split(",")[1] for row in (folder / "student/shares.csv").read_text().split()[1:]} == {"net.onnx", VIT}
    best = host.load_detector("model", record["stages"][0]["weights"])
    assert set(best.state_dict()) == set(host.load_detector("model", str(untrained_detector.pt)).state_dict())
