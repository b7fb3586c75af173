"""Every runtime computes the detector's output, and reports its provider, threads and arithmetic."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd.deploy.runtimes import cuda_index, open_runtime, physical_cores
from yolo_mkd.deploy.runtimes.onnx_runtime import ONNXRuntime, ONNXRuntimeIOBinding
from yolo_mkd.edge.pictures import letterbox, read_picture, to_tensor
from yolo_mkd.settings import BadInput, Failed

pytestmark = pytest.mark.slow

# largest difference to ONNX Runtime where something is detected: box [pixels of 96], score. fp32 differs in the order
# of its sums alone; fp16 keeps 11 bits of a number, so that one rounding of a coordinate is 96 / 2**12 = 0.02 pixels
TOLERANCES = {"fp32": (1e-3, 1e-4), "fp16": (0.2, 0.01)}


@pytest.fixture(scope="module")
def folders(tiny_detector, tmp_path_factory) -> dict[str, Path]:
    """The tiny detector as OpenVINO and NCNN folders by stock Ultralytics; nothing is installed on the way."""
    pytest.importorskip("openvino")
    pytest.importorskip("ncnn")
    pytest.importorskip("pnnx")
    from ultralytics import YOLO

    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultralytics.utils.checks.AUTOINSTALL", False)
        for kind in ("openvino", "ncnn"):
            pt = shutil.copy(tiny_detector.pt, tmp_path_factory.mktemp(kind) / "tiny.pt")
            made[kind] = Path(YOLO(pt).export(format=kind, imgsz=tiny_detector.imgsz))
    return made


@pytest.fixture
def pictures(tiny_detector) -> list[np.ndarray]:
    return [to_tensor(letterbox(read_picture(path), (96, 96))) for path in tiny_detector.images[:4]]


@pytest.mark.parametrize(
    ("kind", "provider", "arithmetic"),
    [("openvino", "OpenVINO CPU", "fp32"), ("ncnn", "ncnn CPU", "fp16 where the processor has it")],
)
def test_output_equals_that_of_onnx_runtime(exported, folders, pictures, kind, provider, arithmetic):
    reference, runtime = open_runtime(exported["one2many"], 1), open_runtime(folders[kind], 1)
    assert (runtime.provider, runtime.threads, runtime.model.format) == (provider, 1, kind)
    assert runtime.arithmetic == arithmetic  # OpenVINO by itself takes bf16 where the processor has it
    assert runtime.model.output == reference.model.output and runtime.versions[kind]
    pixels, score = TOLERANCES[runtime.arithmetic.split()[0]]
    for picture in pictures:
        expected, (output, times) = reference.infer(picture)[0], runtime.infer(picture)
        assert output.dtype == np.float32 and output.shape == expected.shape
        found = expected[0, 4:].max(0) > 0.25
        difference = np.abs(output - expected)[0, :, found]
        assert found.sum() >= 2 and difference[:, :4].max() < pixels and difference[:, 4:].max() < score
        assert list(times) == ["compute"] and times["compute"] > 0
    other = np.abs(runtime.infer(pictures[0])[0] - reference.infer(pictures[1])[0])[0]
    assert other[:4].max() > pixels and other[4:].max() > score  # the tolerances are tight enough to fail


def test_onnx_runtime_reports_its_settings(exported):
    runtime = open_runtime(exported["one2one"], 1)
    assert (runtime.provider, runtime.threads, runtime.segments) == ("CPUExecutionProvider", 1, ("compute",))
    assert runtime.model.head == "one2one" and runtime.load_ms > 0


def test_io_binding_copies_in_computes_and_copies_out(exported, pictures):
    """On the processor the same calls run as on a GPU."""
    bound = ONNXRuntimeIOBinding(exported["one2many"], "CPUExecutionProvider", "cpu", 0)
    plain = ONNXRuntime(exported["one2many"], 1)
    for picture in pictures:
        output, times = bound.infer(picture)
        np.testing.assert_allclose(output, plain.infer(picture)[0], atol=1e-3)
        assert list(times) == ["h2d", "compute", "d2h"] and min(times.values()) > 0


def test_gpu_that_onnx_runtime_cannot_use_is_an_error(exported):
    with pytest.raises(BadInput, match=r"device=cuda:0 needs CUDAExecutionProvider, .*: install onnxruntime-gpu"):
        open_runtime(exported["one2many"], device="cuda:0")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_fallback_from_the_gpu_to_the_processor_is_a_failure(exported, monkeypatch):
    """As where its CUDA libraries are missing: ONNX Runtime lists the provider, warns, and runs on the processor."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(Failed, match="on CPUExecutionProvider, not on CUDAExecutionProvider"):
        open_runtime(exported["one2many"], device="cuda:0")


@pytest.mark.parametrize("device", ["mps", "cuda:x", "gpu"])
def test_unknown_device_is_an_error(exported, device):
    with pytest.raises(BadInput, match=f"device={device} cannot run .* use device=cpu or cuda:0"):
        open_runtime(exported["one2many"], device=device)


def test_fallback_to_another_provider_is_a_failure(exported, monkeypatch):
    other = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider"])
    monkeypatch.setattr("yolo_mkd.deploy.runtimes.onnx_runtime.open_session", lambda path, threads: other)
    with pytest.raises(Failed, match="on AzureExecutionProvider, not on CPUExecutionProvider"):
        open_runtime(exported["one2many"])


def test_engine_is_not_run_here(tmp_path):
    (tmp_path / "best.engine").write_bytes(b"ftrt")
    with pytest.raises(BadInput, match=r"only on the device that built it: time it there with the bundle's time\.py"):
        open_runtime(tmp_path / "best.engine")


@pytest.mark.parametrize("kind", ["openvino", "ncnn"])
def test_missing_runtime_is_named(folders, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(BadInput, match=f"needs .*: pip install {kind}"):
        open_runtime(folders[kind])


@pytest.mark.parametrize(("kind", "suffix"), [("openvino", ".xml"), ("ncnn", ".param")])
def test_damaged_folder_is_an_error(folders, tmp_path, kind, suffix):
    damaged = Path(shutil.copytree(folders[kind], tmp_path / folders[kind].name))
    (file,) = damaged.glob(f"*{suffix}")
    file.write_text(file.read_text()[:500])
    with pytest.raises(BadInput, match="export it again"):
        open_runtime(damaged)


def test_gpu_is_named_as_in_torch():
    assert [cuda_index(word) for word in ("cuda", "cuda:0", "cuda:1", "cpu", "cuda:x")] == [0, 0, 1, None, None]


def test_physical_cores_are_at_least_one_and_no_more_than_logical():
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
