"""Run an exported detector with the runtime of its format: ONNX Runtime, OpenVINO or NCNN. One file a runtime.

TensorRT engines run on the device that built them, with the bundle's own scripts (yolo_mkd/edge).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.exported_model import ExportedModel, format_of
from yolo_mkd.settings import BadInput

Tensor = NDArray[np.float32]  # 1 3 H W, RGB, 0..1
Inference = tuple[NDArray[Any], dict[str, float]]  # the head's output, milliseconds by segment


class Backend(Protocol):
    """An opened file, ready to run."""

    artefact: ExportedModel
    provider: str  # the one really used: CPUExecutionProvider, CUDAExecutionProvider, OpenVINO CPU, ncnn CPU
    accelerator: str | None  # the GPU's name; None on the processor
    arithmetic: str  # what it computes in, which can be less than the file's precision
    threads: int | None  # within an inference; None on a GPU
    segments: tuple[str, ...]  # compute; on a GPU h2d, compute, d2h
    load_ms: float
    versions: dict[str, str]

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image: the head's output, valid until the next call, and the milliseconds of each segment."""


def open_backend(path: str | Path, threads: int | None = None, device: str = "cpu") -> Backend:
    """Open an exported file with the runtime of its format.

    Args:
        path: the .onnx file, or the OpenVINO or NCNN folder.
        threads: within an inference; by default the physical cores this process may use, for NCNN one.
        device: cpu, or cuda:0 for an .onnx file.

    Raises:
        BadInput: the file or the device cannot be used, or the runtime is not installed.
        Failed: the runtime runs the file elsewhere than asked.
    """
    path = Path(path)
    kind = format_of("model", path)
    if kind == "engine":
        raise BadInput(
            f"{path.name} runs only where it was built: time it there with the bundle's time.py "
            "(yolo-mkd bundle), or with trtexec and yolo-mkd time log="
        )
    if device != "cpu" and not (kind == "onnx" and cuda_index(device) is not None):
        choice = "cpu or cuda:0" if kind == "onnx" else "cpu"
        raise BadInput(f"device={device} cannot run {path.name}: use device={choice}")
    if kind == "onnx":
        from yolo_mkd.deploy.runtimes import onnx_runtime

        if device != "cpu":
            return onnx_runtime.BoundSession(path, "CUDAExecutionProvider", "cuda", cuda_index(device) or 0)
        return onnx_runtime.Session(path, threads or physical_cores())
    if kind == "openvino":
        from yolo_mkd.deploy.runtimes.openvino import OpenVINO

        return OpenVINO(path, threads or physical_cores())
    from yolo_mkd.deploy.runtimes.ncnn import Ncnn

    return Ncnn(path, threads or 1)  # more threads than idle cores slow it down thirtyfold: OpenMP spins


def cuda_index(device: str) -> int | None:
    """The number in cuda:0; plain cuda is the first; None for another device."""
    name, _, index = str(device).partition(":")
    return int(index or 0) if name == "cuda" and (index.isdecimal() or not index) else None


def physical_cores() -> int:
    """Count the physical cores this process may use; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    places = [Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in os.sched_getaffinity(0)]
    return len({p.read_text() if p.exists() else str(p) for p in places})
