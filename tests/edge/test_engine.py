"""TensorRT engines of three generations: built once per file, version, GPU and precision; transfers timed apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import COMPUTE_MS, COPY_MS, GPU, MAGIC, Cudart, tensorrt

from yolo_mkd.edge import cuda as cuda_module
from yolo_mkd.edge import tensor_rt
from yolo_mkd.edge.bundle import Bundle, EdgeError, sha256
from yolo_mkd.edge.cuda import Cuda
from yolo_mkd.edge.onnx_runtime import ONNXRuntime
from yolo_mkd.edge.tensor_rt import TensorRT, build_engine

VERSIONS = ["8.5.2.2", "10.3.0", "11.4.1"]


@pytest.fixture(params=["one2many", "one2one"])
def bundle(request, exported, tmp_path) -> Bundle:
    model = exported[request.param]
    return Bundle(tmp_path, model, sha256(model), ["red", "green", "blue"], (96, 96), request.param, "fp32", {})


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
def test_engine_computes_the_output_of_the_onnx_file_and_times_each_transfer(bundle, device, version):
    trt, cuda = device(version)
    build_engine(bundle, trt=trt, cuda=cuda)
    runtime = TensorRT(bundle, trt=trt, cuda=cuda)
    output, segments = runtime.infer(picture())
    np.testing.assert_array_equal(output, ONNXRuntime(bundle.model, "fp32").infer(picture())[0])
    assert segments == {"h2d": COPY_MS, "compute": COMPUTE_MS, "d2h": COPY_MS}
    again, _ = runtime.infer(picture()[..., ::-1].copy())
    np.testing.assert_array_equal(again, ONNXRuntime(bundle.model, "fp32").infer(picture()[..., ::-1].copy())[0])
    assert runtime.versions == {"tensorrt": version, "cuda": "12.6"} and runtime.arithmetic == "fp32"


def test_plan_has_no_header_and_a_json_file_beside_it_describes_it(bundle, device):
    trt, cuda = device("10.3.0")
    plan = build_engine(bundle, fp16=True, trt=trt, cuda=cuda)
    assert plan.read_bytes().startswith(MAGIC)
    assert plan.name == f"{bundle.sha256[:12]}_trt10.3.0_Orin-sm8.7-8mp_fp16.plan"
    about = json.loads(plan.with_suffix(".json").read_text())
    assert about["onnx_sha256"] == bundle.sha256 and about["plan_sha256"] == sha256(plan)
    assert (about["tensorrt"], about["gpu"], about["precision"]) == ("10.3.0", GPU, "fp16")
    assert sorted(p.name for p in plan.parent.iterdir()) == [plan.with_suffix(".json").name, plan.name]


def test_second_build_takes_the_engine_from_the_cache(bundle, device, capsys):
    trt, cuda = device("10.3.0")
    first = build_engine(bundle, trt=trt, cuda=cuda)
    assert build_engine(bundle, trt=trt, cuda=cuda) == first and len(trt.builds) == 1
    assert "built before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "gpu", "reason"),
    [
        ("10.7.0", None, "tensorrt was 10.3.0, is 10.7.0"),
        ("10.3.0", {**GPU, "multiprocessors": 16}, "gpu was"),
        ("10.3.0", {**GPU, "name": "Thor"}, "gpu was"),
    ],
)
def test_other_tensorrt_or_gpu_builds_again_and_prints_why(bundle, device, capsys, version, gpu, reason):
    trt, cuda = device("10.3.0")
    first = build_engine(bundle, trt=trt, cuda=cuda)
    trt, cuda = device(version, gpu)
    with pytest.raises(EdgeError, match=r"no engine for this device \(" + reason + r".*python run\.py --build"):
        TensorRT(bundle, trt=trt, cuda=cuda)
    capsys.readouterr()
    second = build_engine(bundle, trt=trt, cuda=cuda)
    assert second != first and len(trt.builds) == 1
    assert reason in capsys.readouterr().out
    TensorRT(bundle, trt=trt, cuda=cuda)


def test_other_onnx_file_builds_again(bundle, device):
    trt, cuda = device("8.5.2.2")
    build_engine(bundle, trt=trt, cuda=cuda)
    other = bundle._replace(sha256="0" * 64)
    assert "onnx_sha256 was" in tensor_rt.rebuild_reason(bundle.folder, tensor_rt.engine_key(other, trt, cuda, False))
    build_engine(other, trt=trt, cuda=cuda)
    assert len(trt.builds) == 2


def test_plan_whose_json_describes_another_file_is_built_again(bundle, device, capsys):
    trt, cuda = device("10.3.0")
    plan = build_engine(bundle, trt=trt, cuda=cuda)
    about = json.loads(plan.with_suffix(".json").read_text())
    plan.with_suffix(".json").write_text(json.dumps({**about, "onnx_sha256": bundle.sha256[:12] + "0" * 52}))
    build_engine(bundle, trt=trt, cuda=cuda)
    assert "was built for another onnx_sha256" in capsys.readouterr().out and len(trt.builds) == 2


def test_damaged_plan_is_built_again(bundle, device, capsys):
    trt, cuda = device("10.3.0")
    plan = build_engine(bundle, trt=trt, cuda=cuda)
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-100])
    build_engine(bundle, trt=trt, cuda=cuda)
    assert "was changed after it was written" in capsys.readouterr().out and plan.read_bytes() == whole
    plan.with_suffix(".json").write_text("{")
    build_engine(bundle, trt=trt, cuda=cuda)
    assert len(trt.builds) == 3
    plan.unlink()
    build_engine(bundle, trt=trt, cuda=cuda)
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
def test_precision_is_a_flag_up_to_10_and_the_files_own_in_11(bundle, device, version, precision, fp16, flags, built):
    trt, cuda = device(version)
    plan = build_engine(bundle._replace(precision=precision), fp16, trt, cuda)
    assert trt.builds == [flags]
    assert json.loads(plan.with_suffix(".json").read_text())["precision"] == built


def test_fp16_of_an_fp32_file_is_an_error_in_11_with_advice(bundle, device):
    trt, cuda = device("11.4.1")
    with pytest.raises(EdgeError, match=r"takes the precision from the file.*quantize=16"):
        build_engine(bundle, True, trt, cuda)
    assert not (bundle.folder / "engines").exists()


def test_fastest_engine_is_opened_unless_one_is_requested(bundle, device):
    trt, cuda = device("10.3.0")
    build_engine(bundle, False, trt, cuda)
    assert TensorRT(bundle, trt=trt, cuda=cuda).arithmetic == "fp32"
    build_engine(bundle, True, trt, cuda)
    assert TensorRT(bundle, trt=trt, cuda=cuda).arithmetic == "fp16"
    assert TensorRT(bundle, fp16=False, trt=trt, cuda=cuda).arithmetic == "fp32"


def test_file_that_the_parser_rejects_is_a_one_line_error(bundle, device, tmp_path):
    trt, cuda = device("10.3.0")
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no onnx\nat all")
    with pytest.raises(EdgeError, match=r"TensorRT 10\.3\.0 cannot parse model\.onnx: ") as caught:
        build_engine(bundle._replace(model=broken), trt=trt, cuda=cuda)
    assert "\n" not in str(caught.value) and not (bundle.folder / "engines").exists()


def test_plan_that_cannot_be_loaded_is_an_error_with_advice(bundle, device):
    trt, cuda = device("10.3.0")
    plan = build_engine(bundle, trt=trt, cuda=cuda)
    plan.write_bytes(b"\0\0\0\0" + plan.read_bytes())  # a header before the plan, as Ultralytics writes one
    about = {**json.loads(plan.with_suffix(".json").read_text()), "plan_sha256": sha256(plan)}
    plan.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(EdgeError, match="cannot be loaded: delete it and build again"):
        TensorRT(bundle, trt=trt, cuda=cuda)


def test_cuda_errors_keep_cudas_message(device):
    _, cuda = device("10.3.0")
    host = cuda.pinned((4,), np.float32)
    with pytest.raises(EdgeError, match="cudaMemcpyAsync: invalid argument"):
        cuda.copy(host.ctypes.data_as(cuda_module.c_void_p), cuda.device_memory(16), 16, cuda_module.TO_DEVICE)
    with pytest.raises(EdgeError, match="cudaEventElapsedTime: device not ready"):
        cuda.elapsed_ms(cuda.event(), cuda.event())


def test_missing_tensorrt_or_cuda_is_a_one_line_error(bundle, monkeypatch):
    monkeypatch.setattr(tensor_rt.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("none")))
    with pytest.raises(EdgeError, match="tensorrt cannot be imported"):
        build_engine(bundle)
    (bundle.folder / "engines").mkdir()
    assert not tensor_rt.engine_is_ready(bundle)
    monkeypatch.setattr(tensor_rt.importlib, "import_module", lambda name: tensorrt("8.4.1", Cudart()))
    with pytest.raises(EdgeError, match=r"TensorRT 8\.4\.1 is too old"):
        tensor_rt.import_tensorrt()
    monkeypatch.setattr(cuda_module, "libraries", lambda: ["libcudart-is-not-here.so"])
    with pytest.raises(EdgeError, match="libcudart was not found"):
        Cuda()


def test_cuda_is_found_beside_nvidias_wheels(tmp_path, monkeypatch):
    library = tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(library) in cuda_module.libraries() and Path(cuda_module.libraries()[-1]).name == "libcudart.so"
