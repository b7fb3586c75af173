"""Run an .onnx file with ONNX Runtime: on the processor, or on a GPU with the transfers timed apart."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns

import numpy as np

from yolo_mkd.deploy.exported_model import PROVIDER, open_session, read_onnx
from yolo_mkd.deploy.runtimes import Inference, Tensor
from yolo_mkd.settings import BadInput, Failed


class Session:
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
        self.provider = really_on(self.session, PROVIDER, path)
        self.artefact = read_onnx(path, self.session)
        self.arithmetic = self.artefact.precision
        self.threads: int | None = threads
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.input = self.session.get_inputs()[0].name

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image."""
        start = perf_counter_ns()
        output = self.session.run(None, {self.input: tensor})[0]
        return output, {"compute_ms": (perf_counter_ns() - start) / 1e6}


class BoundSession:
    """A session whose input and output stay on a device, so that each copy is a call of its own."""

    segments: tuple[str, ...] = ("h2d", "compute", "d2h")

    def __init__(self, path: Path, provider: str, device: str, index: int) -> None:
        """Open a file.

        Args:
            path: the .onnx file.
            provider: the execution provider, such as CUDAExecutionProvider.
            device: where it keeps its tensors: cuda or cpu.
            index: the device's number.

        Raises:
            BadInput: this ONNX Runtime has no such provider.
            Failed: it runs the file on another one.
        """
        import onnxruntime

        if provider not in onnxruntime.get_available_providers():
            raise BadInput(
                f"device={device}:{index}: this ONNX Runtime has no {provider}: "
                "install onnxruntime-gpu in its place, or use device=cpu"
            )
        start = perf_counter_ns()
        chosen = [(provider, {"device_id": index})] if device == "cuda" else [provider]
        self.session = onnxruntime.InferenceSession(str(path), providers=chosen)
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.provider = really_on(self.session, provider, path)
        self.artefact = read_onnx(path, self.session)
        self.accelerator: str | None = gpu_name(index) if device == "cuda" else None
        tf32 = device == "cuda" and self.artefact.precision == "fp32"
        self.arithmetic = self.artefact.precision + (", in TF32 where the GPU has it" if tf32 else "")
        self.threads: int | None = None
        self.versions = {"onnxruntime": onnxruntime.__version__}
        shape = [1, 3, *self.artefact.imgsz]
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
        return output, {"h2d_ms": (t1 - t0) / 1e6, "compute_ms": (t2 - t1) / 1e6, "d2h_ms": (t3 - t2) / 1e6}


def gpu_name(index: int) -> str:
    """The name of a GPU, which PyTorch and ONNX Runtime number alike."""
    import torch

    return torch.cuda.get_device_name(index)


def really_on(session: object, wanted: str, path: Path) -> str:
    """The provider that a session uses.

    Raises:
        Failed: it is not the one wanted: ONNX Runtime falls back with a warning only.
    """
    used = str(session.get_providers()[0])  # type: ignore[attr-defined]
    if used != wanted:
        raise Failed(f"ONNX Runtime runs {path.name} on {used}, not on {wanted}: no times were taken")
    return used
