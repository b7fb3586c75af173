"""Run a bundle's model with ONNX Runtime, on the processor or through CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from .bundle import EdgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ONNXRuntime:
    """An open session. `infer` takes 1 3 H W float32 and returns the head's output and the milliseconds it took."""

    segments = ("compute",)  # with CUDA it includes the transfers
    accelerator = None

    def __init__(self, model: Path, precision: str, device: str = "cpu", threads: int | None = None) -> None:
        """Open the file.

        Args:
            model: the .onnx file.
            precision: the file's.
            device: cpu or cuda.
            threads: within an operator; by default the physical cores this process may use.

        Raises:
            EdgeError: ONNX Runtime is missing, cannot load the file, or uses another device.
        """
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError as error:
            raise EdgeError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
        if PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise EdgeError(
                f"onnxruntime has no {PROVIDERS[device]} here: install onnxruntime-gpu, or use --device cpu"
            )
        options = onnxruntime.SessionOptions()
        self.threads = threads or physical_cores()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        modern = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 18)
        exact = {"use_tf32": "0"} if device == "cuda" and modern else {}  # TF32 keeps 10 bits of the mantissa's 23
        start = perf_counter_ns()
        try:
            self.session = onnxruntime.InferenceSession(str(model), options, [(PROVIDERS[device], exact)])
        except (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented, ValueError) as error:
            raise EdgeError(
                f"{model.name} cannot be loaded by ONNX Runtime: {' '.join(str(error).split())[:160]}"
            ) from error
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.provider = self.session.get_providers()[0]
        if self.provider != PROVIDERS[device]:
            raise EdgeError(f"ONNX Runtime fell back from {PROVIDERS[device]} to {self.provider}: use --device cpu")
        self.arithmetic = precision
        self.versions = {"onnxruntime": onnxruntime.__version__}
        given = self.session.get_inputs()[0]
        self.input, self.half = given.name, given.type == "tensor(float16)"

    def infer(self, tensor: NDArray[np.float32]) -> tuple[NDArray[Any], dict[str, float]]:
        """Run one image."""
        start = perf_counter_ns()
        output = self.session.run(None, {self.input: tensor.astype(np.float16) if self.half else tensor})[0]
        return output, {"compute": (perf_counter_ns() - start) / 1e6}


def physical_cores() -> int:
    """Count the physical cores this process may use; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    places = [Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in os.sched_getaffinity(0)]
    return len({p.read_text() if p.exists() else str(p) for p in places})
