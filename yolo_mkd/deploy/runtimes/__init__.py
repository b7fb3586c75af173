"""Run an exported detector with the runtime of its format: ONNX Runtime, OpenVINO, NCNN or LiteRT, one file each.

TensorRT engines run on the device that built them, with the scripts of a bundle (yolo_mkd/edge).
"""

from __future__ import annotations

from pathlib import Path

from yolo_mkd.deploy.exported_model import format_of
from yolo_mkd.deploy.runtimes.base import Inference, Runtime, Tensor
from yolo_mkd.deploy.runtimes.litert import LiteRT
from yolo_mkd.deploy.runtimes.ncnn import NCNN
from yolo_mkd.deploy.runtimes.onnx_runtime import ONNXRuntime, ONNXRuntimeIOBinding
from yolo_mkd.deploy.runtimes.openvino import OpenVINO
from yolo_mkd.edge.onnx_runtime import physical_cores
from yolo_mkd.settings import BadInput

__all__ = ["Inference", "Runtime", "Tensor", "cuda_index", "open_runtime", "physical_cores"]


def open_runtime(path: str | Path, threads: int | None = None, device: str = "cpu") -> Runtime:
    """Open an exported file with the runtime of its format.

    Args:
        path: the .onnx or .tflite file, or the OpenVINO or NCNN folder.
        threads: within an inference; by default the physical cores this process may use, for NCNN one.
        device: cpu, or cuda:0 for an .onnx file.

    Raises:
        BadInput: the file or the device cannot be used, or the runtime is not installed.
        Failed: the runtime uses another device than requested.
    """
    path = Path(path)
    format = format_of("model", path)
    if format == "engine":
        raise BadInput(
            f"{path.name} runs only on the device that built it: time it there with the bundle's time.py "
            "(yolo-mkd bundle), or with trtexec and yolo-mkd time log="
        )
    gpu = cuda_index(device) if format == "onnx" else None
    if device != "cpu" and gpu is None:
        choice = "cpu or cuda:0" if format == "onnx" else "cpu"
        raise BadInput(f"device={device} cannot run {path.name}: use device={choice}")
    if gpu is not None:
        return ONNXRuntimeIOBinding(path, "CUDAExecutionProvider", "cuda", gpu)
    if format == "onnx":
        return ONNXRuntime(path, threads or physical_cores())
    if format == "openvino":
        return OpenVINO(path, threads or physical_cores())
    if format == "litert":
        return LiteRT(path, threads or physical_cores())
    return NCNN(path, threads or 1)  # more threads than idle cores slow it down thirtyfold: OpenMP spins


def cuda_index(device: str) -> int | None:
    """The number in cuda:0; plain cuda is the first; None for another device."""
    name, _, index = str(device).partition(":")
    return int(index or 0) if name == "cuda" and (index.isdecimal() or not index) else None
