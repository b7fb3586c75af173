"""Every runtime gives the detector's own output, and says where and in what it computed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolo_mkd.deploy.runtimes import cuda_index, open_backend, physical_cores
from yolo_mkd.deploy.runtimes.onnx_runtime import BoundSession, Session
from yolo_mkd.edge.pictures import letterbox, read_picture, tensor
from yolo_mkd.settings import BadInput, Failed

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
    return [tensor(letterbox(read_picture(path), (96, 96))) for path in tiny_detector.images[:4]]


@pytest.mark.parametrize(
    ("kind", "provider", "arithmetic"),
    [("openvino", "OpenVINO CPU", "fp32"), ("ncnn", "ncnn CPU", "fp16 where the processor has it")],
)
def test_output_is_that_of_onnx_runtime(exported, folders, pictures, kind, provider, arithmetic):
    reference, backend = open_backend(exported["one2many"], 1), open_backend(folders[kind], 1)
    assert (backend.provider, backend.threads, backend.artefact.format) == (provider, 1, kind)
    assert backend.arithmetic == arithmetic  # OpenVINO by itself takes bf16 where the processor has it
    assert backend.artefact.output == reference.artefact.output and backend.versions[kind]
    pixels, score = TOLERANCES[backend.arithmetic.split()[0]]
    for picture in pictures:
        expected, (output, times) = reference.infer(picture)[0], backend.infer(picture)
        assert output.dtype == np.float32 and output.shape == expected.shape
        found = expected[0, 4:].max(0) > 0.25
        difference = np.abs(output - expected)[0, :, found]
        assert found.sum() >= 2 and difference[:, :4].max() < pixels and difference[:, 4:].max() < score
        assert list(times) == ["compute_ms"] and times["compute_ms"] > 0
    other = np.abs(backend.infer(pictures[0])[0] - reference.infer(pictures[1])[0])[0]
    assert other[:4].max() > pixels and other[4:].max() > score  # the tolerances are tight enough to fail


def test_onnx_runtime_says_what_it_uses(exported):
    backend = open_backend(exported["one2one"], 1)
    assert (backend.provider, backend.threads, backend.segments) == ("CPUExecutionProvider", 1, ("compute",))
    assert backend.artefact.head == "one2one" and backend.load_ms > 0


def test_bound_session_copies_in_computes_and_copies_out(exported, pictures):
    """On the processor the same calls run as on a GPU."""
    bound = BoundSession(exported["one2many"], "CPUExecutionProvider", "cpu", 0)
    plain = Session(exported["one2many"], 1)
    for picture in pictures:
        output, times = bound.infer(picture)
        np.testing.assert_allclose(output, plain.infer(picture)[0], atol=1e-3)
        assert list(times) == ["h2d_ms", "compute_ms", "d2h_ms"] and min(times.values()) > 0


def test_gpu_that_onnx_runtime_cannot_use_is_refused(exported):
    with pytest.raises(BadInput, match="no CUDAExecutionProvider: install onnxruntime-gpu"):
        open_backend(exported["one2many"], device="cuda:0")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_gpu_that_onnx_runtime_silently_leaves_is_a_failure(exported, monkeypatch):
    """As where its CUDA libraries are missing: ONNX Runtime lists the provider, warns, and runs on the processor."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(Failed, match="on CPUExecutionProvider, not on CUDAExecutionProvider"):
        open_backend(exported["one2many"], device="cuda:0")


@pytest.mark.parametrize("device", ["mps", "cuda:x", "gpu"])
def test_unknown_device_is_refused(exported, device):
    with pytest.raises(BadInput, match=f"device={device} cannot run .* use device=cpu or cuda:0"):
        open_backend(exported["one2many"], device=device)


def test_silent_fallback_to_another_provider_is_a_failure(exported, monkeypatch):
    other = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider"])
    monkeypatch.setattr("yolo_mkd.deploy.runtimes.onnx_runtime.open_session", lambda path, threads: other)
    with pytest.raises(Failed, match="on AzureExecutionProvider, not on CPUExecutionProvider"):
        open_backend(exported["one2many"])


def test_engine_is_left_to_its_device(tmp_path):
    (tmp_path / "best.engine").write_bytes(b"ftrt")
    with pytest.raises(BadInput, match=r"runs only where it was built: time it there with the bundle's time\.py"):
        open_backend(tmp_path / "best.engine")


@pytest.mark.parametrize("kind", ["openvino", "ncnn"])
def test_missing_runtime_is_named(folders, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(BadInput, match=f"needs .*: pip install {kind}"):
        open_backend(folders[kind])


@pytest.mark.parametrize(("kind", "suffix"), [("openvino", ".xml"), ("ncnn", ".param")])
def test_torn_folder_is_refused(folders, tmp_path, kind, suffix):
    torn = Path(shutil.copytree(folders[kind], tmp_path / folders[kind].name))
    (file,) = torn.glob(f"*{suffix}")
    file.write_text(file.read_text()[:500])
    with pytest.raises(BadInput, match="export it again"):
        open_backend(torn)


def test_gpu_is_given_as_torch_writes_it():
    assert [cuda_index(word) for word in ("cuda", "cuda:0", "cuda:1", "cpu", "cuda:x")] == [0, 0, 1, None, None]


def test_physical_cores_are_at_least_one_and_no_more_than_logical():
    import os

    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
