"""Run an .onnx file with ONNX Runtime: on the processor, or on a GPU with separately timed transfers."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from yolo_mkd.deploy.exported_model import PROVIDER, open_session, read_onnx
from yolo_mkd.deploy.runtimes.base import Inference, Tensor
from yolo_mkd.settings import BadInput, Failed


class ONNXRuntime:
    """A session on the processor."""

    segments: tuple[str, ...] = ("compute",)
    accelerator: str | None = None

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Args:
            path: the .onnx file.
            threads: within an operator.
        """
        import onnxruntime

        start = perf_counter_ns()
        self.session = open_session(path, threads)
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.provider = require_provider(self.session, PROVIDER, path)
        self.model = read_onnx(path, self.session)
        self.arithmetic = self.model.precision
        self.threads: int | None = threads
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.input = self.session.get_inputs()[0].name

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image."""
        start = perf_counter_ns()
        output = self.session.run(None, {self.input: tensor})[0]
        return output, {"compute": (perf_counter_ns() - start) / 1e6}


class ONNXRuntimeIOBinding:
    """A session whose input and output are bound to device memory, so that each copy is a separate call."""

    segments: tuple[str, ...] = ("h2d", "compute", "d2h")

    def __init__(self, path: Path, provider: str, device: str, index: int) -> None:
        """Open a file.

        Args:
            path: the .onnx file.
            provider: the execution provider, such as CUDAExecutionProvider.
            device: where its tensors are stored: cuda or cpu.
            index: the device's number.

        Raises:
            BadInput: this ONNX Runtime has no such provider.
            Failed: it uses another one.
        """
        import onnxruntime

        if provider not in onnxruntime.get_available_providers():
            raise BadInput(
                f"device={device}:{index} needs {provider}, which the installed ONNX Runtime does not have: "
                "install onnxruntime-gpu in its place, or use device=cpu"
            )
        start = perf_counter_ns()
        chosen = [(provider, {"device_id": index})] if device == "cuda" else [provider]
        self.session = onnxruntime.InferenceSession(str(path), providers=chosen)
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.provider = require_provider(self.session, provider, path)
        self.model = read_onnx(path, self.session)
        self.accelerator: str | None = gpu_name(index) if device == "cuda" else None
        tf32 = device == "cuda" and self.model.precision == "fp32"
        self.arithmetic = self.model.precision + (", in TF32 where the GPU has it" if tf32 else "")
        self.threads: int | None = None
        self.versions = {"onnxruntime": onnxruntime.__version__}
        shape = [1, 3, *self.model.imgsz]
        self.given = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, index)
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input(self.session.get_inputs()[0].name, self.given)
        self.binding.bind_output(self.session.get_outputs()[0].name, device, index)

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image: copy in, compute, copy out; each call returns when its work is done."""
        t0 = perf_counter_ns()
        self.given.update_inplace(tensor)
        self.binding.synchronize_inputs()
        t1 = perf_counter_ns()
        self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        t2 = perf_counter_ns()
        output = self.binding.get_outputs()[0].numpy()
        t3 = perf_counter_ns()
        return output, {"h2d": (t1 - t0) / 1e6, "compute": (t2 - t1) / 1e6, "d2h": (t3 - t2) / 1e6}


def gpu_name(index: int) -> str:
    """The name of a GPU; PyTorch and ONNX Runtime use the same numbers."""
    import torch

    return torch.cuda.get_device_name(index)


def require_provider(session: Any, wanted: str, path: Path) -> str:
    """Return the provider that a session uses, after validating that it is the one wanted.

    Raises:
        Failed: it is another one; ONNX Runtime only warns when it falls back.
    """
    used = str(session.get_providers()[0])
    if used != wanted:
        raise Failed(f"ONNX Runtime runs {path.name} on {used}, not on {wanted}: nothing was measured")
    return used
