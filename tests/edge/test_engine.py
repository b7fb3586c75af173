"""Engines of three generations of TensorRT: built once for what they depend on, and run with the transfers apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import COMPUTE_MS, COPY_MS, GPU, MAGIC, Cudart, tensorrt

from yolo_mkd.edge import cuda as cuda_module
from yolo_mkd.edge import tensor_rt
from yolo_mkd.edge.contents import Contents, Trouble, sha256
from yolo_mkd.edge.cuda import Cuda
from yolo_mkd.edge.onnx_runtime import OnnxRuntime
from yolo_mkd.edge.tensor_rt import TensorRT, build

VERSIONS = ["8.5.2.2", "10.3.0", "11.4.1"]


@pytest.fixture(params=["one2many", "one2one"])
def contents(request, exported, tmp_path) -> Contents:
    model = exported[request.param]
    return Contents(tmp_path, model, sha256(model), ["red", "green", "blue"], (96, 96), request.param, "fp32", {})


@pytest.fixture
def device():
    """A machine: a version of TensorRT on a GPU."""

    def make(version: str, gpu: dict | None = None):
        cudart = Cudart(gpu)
        return tensorrt(version, cudart), Cuda(cudart)

    return make


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, 96, 96), np.float32)


@pytest.mark.parametrize("version", VERSIONS)
def test_engine_gives_what_the_onnx_file_gives_with_each_transfer_apart(contents, device, version):
    trt, cuda = device(version)
    build(contents, trt=trt, cuda=cuda)
    runtime = TensorRT(contents, trt=trt, cuda=cuda)
    output, segments = runtime.infer(picture())
    np.testing.assert_array_equal(output, OnnxRuntime(contents.model, "fp32").infer(picture())[0])
    assert segments == {"h2d": COPY_MS, "compute": COMPUTE_MS, "d2h": COPY_MS}
    again, _ = runtime.infer(picture()[..., ::-1].copy())
    np.testing.assert_array_equal(again, OnnxRuntime(contents.model, "fp32").infer(picture()[..., ::-1].copy())[0])
    assert runtime.versions == {"tensorrt": version, "cuda": "12.6"} and runtime.precision == "fp32"


def test_plan_is_pure_and_a_json_beside_it_says_what_it_is_for(contents, device):
    trt, cuda = device("10.3.0")
    plan = build(contents, fp16=True, trt=trt, cuda=cuda)
    assert plan.read_bytes().startswith(MAGIC)
    assert plan.name == f"{contents.sha256[:12]}_trt10.3.0_Orin-sm8.7-8mp_fp16.plan"
    about = json.loads(plan.with_suffix(".json").read_text())
    assert about["onnx_sha256"] == contents.sha256 and about["plan_sha256"] == sha256(plan)
    assert (about["tensorrt"], about["gpu"], about["precision"]) == ("10.3.0", GPU, "fp16")
    assert sorted(p.name for p in plan.parent.iterdir()) == [plan.with_suffix(".json").name, plan.name]


def test_second_build_takes_the_engine_from_the_cache(contents, device, capsys):
    trt, cuda = device("10.3.0")
    first = build(contents, trt=trt, cuda=cuda)
    assert build(contents, trt=trt, cuda=cuda) == first and len(trt.builds) == 1
    assert "as built before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "gpu", "reason"),
    [
        ("10.7.0", None, "tensorrt was 10.3.0, is 10.7.0"),
        ("10.3.0", {**GPU, "multiprocessors": 16}, "gpu was"),
        ("10.3.0", {**GPU, "name": "Thor"}, "gpu was"),
    ],
)
def test_other_tensorrt_or_gpu_builds_again_and_says_why(contents, device, capsys, version, gpu, reason):
    trt, cuda = device("10.3.0")
    first = build(contents, trt=trt, cuda=cuda)
    trt, cuda = device(version, gpu)
    with pytest.raises(Trouble, match=r"no engine for this device \(" + reason + r".*python run\.py --build"):
        TensorRT(contents, trt=trt, cuda=cuda)
    capsys.readouterr()
    second = build(contents, trt=trt, cuda=cuda)
    assert second != first and len(trt.builds) == 1
    assert reason in capsys.readouterr().out
    TensorRT(contents, trt=trt, cuda=cuda)


def test_other_onnx_file_builds_again(contents, device):
    trt, cuda = device("8.5.2.2")
    build(contents, trt=trt, cuda=cuda)
    other = contents._replace(sha256="0" * 64)
    assert "onnx_sha256 was" in tensor_rt.stale(contents.folder, tensor_rt.key(other, trt, cuda, False))
    build(other, trt=trt, cuda=cuda)
    assert len(trt.builds) == 2


def test_plan_whose_json_is_for_something_else_is_built_again(contents, device, capsys):
    trt, cuda = device("10.3.0")
    plan = build(contents, trt=trt, cuda=cuda)
    about = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps({**about, "onnx_sha256": contents.sha256[:12] + "0" * 52}))
    build(contents, trt=trt, cuda=cuda)
    assert "was built for another onnx_sha256" in capsys.readouterr().out and len(trt.builds) == 2


def test_torn_plan_is_built_again(contents, device, capsys):
    trt, cuda = device("10.3.0")
    plan = build(contents, trt=trt, cuda=cuda)
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-100])
    build(contents, trt=trt, cuda=cuda)
    assert "is not as it was written" in capsys.readouterr().out and plan.read_bytes() == whole
    plan.with_suffix(".json").write_text("{")
    build(contents, trt=trt, cuda=cuda)
    assert len(trt.builds) == 3
    plan.unlink()
    build(contents, trt=trt, cuda=cuda)
    assert len(trt.builds) == 4


@pytest.mark.parametrize(
    ("version", "precision", "fp16", "flags", "built"),
    [
        ("8.5.2.2", "fp32", False, set(), "fp32"),  # TF32 is on by default and would not pass the check
        ("8.5.2.2", "fp32", True, {"FP16", "TF32"}, "fp16"),
        ("10.3.0", "fp16", False, {"FP16", "TF32"}, "fp16"),
        ("10.3.0", "int8", False, {"INT8", "TF32"}, "int8"),
        ("10.3.0", "int8", True, {"INT8", "FP16", "TF32"}, "int8+fp16"),
        ("11.4.1", "fp32", False, set(), "fp32"),
        ("11.4.1", "fp16", True, {"TF32"}, "fp16"),  # the file's own precision
        ("11.4.1", "int8", False, {"TF32"}, "int8"),
    ],
)
def test_precision_is_a_flag_up_to_10_and_the_files_own_in_11(contents, device, version, precision, fp16, flags, built):
    trt, cuda = device(version)
    plan = build(contents._replace(precision=precision), fp16, trt, cuda)
    assert trt.builds == [flags]
    assert json.loads(plan.with_suffix(".json").read_text())["precision"] == built


def test_fp16_of_an_fp32_file_is_refused_by_11_with_advice(contents, device):
    trt, cuda = device("11.4.1")
    with pytest.raises(Trouble, match=r"takes the precision from the file.*quantize=16"):
        build(contents, True, trt, cuda)
    assert not (contents.folder / "engines").exists()


def test_fastest_engine_is_taken_unless_one_is_named(contents, device):
    trt, cuda = device("10.3.0")
    build(contents, False, trt, cuda)
    assert TensorRT(contents, trt=trt, cuda=cuda).precision == "fp32"
    build(contents, True, trt, cuda)
    assert TensorRT(contents, trt=trt, cuda=cuda).precision == "fp16"
    assert TensorRT(contents, fp16=False, trt=trt, cuda=cuda).precision == "fp32"


def test_file_that_the_parser_does_not_take_is_one_line(contents, device, tmp_path):
    trt, cuda = device("10.3.0")
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no onnx\nat all")
    with pytest.raises(Trouble, match=r"TensorRT 10\.3\.0 does not take model\.onnx: ") as caught:
        build(contents._replace(model=broken), trt=trt, cuda=cuda)
    assert "\n" not in str(caught.value) and not (contents.folder / "engines").exists()


def test_plan_that_cannot_be_loaded_asks_for_another_build(contents, device):
    trt, cuda = device("10.3.0")
    plan = build(contents, trt=trt, cuda=cuda)
    plan.write_bytes(b"\0\0\0\0" + plan.read_bytes())  # a header before the plan, as Ultralytics writes one
    about = {**json.loads(plan.with_suffix(".json").read_text()), "plan_sha256": sha256(plan)}
    plan.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(Trouble, match="cannot be loaded: delete it and build again"):
        TensorRT(contents, trt=trt, cuda=cuda)


def test_what_cuda_refuses_is_said_in_its_words(device):
    _, cuda = device("10.3.0")
    host = cuda.pinned((4,), np.float32)
    with pytest.raises(Trouble, match="cudaMemcpyAsync: invalid argument"):
        cuda.copy(host.ctypes.data_as(cuda_module.c_void_p), cuda.device_memory(16), 16, cuda_module.TO_DEVICE)
    with pytest.raises(Trouble, match="cudaEventElapsedTime: device not ready"):
        cuda.elapsed_ms(cuda.event(), cuda.event())


def test_machine_without_tensorrt_or_cuda_is_told_so(contents, monkeypatch):
    monkeypatch.setattr(tensor_rt.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("none")))
    with pytest.raises(Trouble, match="tensorrt cannot be imported"):
        build(contents)
    (contents.folder / "engines").mkdir()
    assert not tensor_rt.ready(contents)
    monkeypatch.setattr(tensor_rt.importlib, "import_module", lambda name: tensorrt("8.4.1", Cudart()))
    with pytest.raises(Trouble, match=r"TensorRT 8\.4\.1 is too old"):
        tensor_rt.library()
    monkeypatch.setattr(cuda_module, "libraries", lambda: ["libcudart-is-not-here.so"])
    with pytest.raises(Trouble, match="libcudart is not found"):
        Cuda()


def test_cuda_is_found_beside_nvidias_wheels(tmp_path, monkeypatch):
    library = tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(library) in cuda_module.libraries() and Path(cuda_module.libraries()[-1]).name == "libcudart.so"
