"""Choice of the runtime: the engine that was built for this device, else ONNX Runtime."""

from __future__ import annotations

import argparse

from . import tensor_rt
from .bundle import Bundle, EdgeError
from .onnx_runtime import ONNXRuntime
from .tensor_rt import TensorRT


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a runtime."""
    parser.add_argument(
        "--backend",
        choices=("auto", "tensorrt", "onnxruntime"),
        default="auto",
        help="auto: TensorRT where an engine was built for this device, else ONNX Runtime",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for ONNX Runtime (default: cpu)")
    parser.add_argument("--threads", type=int, help="for ONNX Runtime (default: the physical cores)")
    parser.add_argument("--fp16", action="store_true", help="TensorRT 8 to 10: build or run the FP16 engine")


def open_runtime(bundle: Bundle, options: argparse.Namespace) -> ONNXRuntime | TensorRT:
    """Open the runtime that the options choose.

    Raises:
        EdgeError: it is not installed, or cannot run the model.
    """
    if options.threads is not None and options.threads < 1:
        raise EdgeError(f"--threads {options.threads} must be at least 1, for example --threads 2")
    backend = options.backend
    if backend == "auto":
        backend = "tensorrt" if options.fp16 or tensor_rt.engine_is_ready(bundle) else "onnxruntime"
    if backend == "tensorrt":
        return TensorRT(bundle, fp16=True if options.fp16 else None)
    return ONNXRuntime(bundle.model, bundle.precision, options.device, options.threads)
