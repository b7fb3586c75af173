"""Which runtime a script uses: the engine that was built for this device, else ONNX Runtime."""

from __future__ import annotations

import argparse

from . import tensor_rt
from .contents import Contents, Trouble
from .onnx_runtime import OnnxRuntime
from .tensor_rt import TensorRT


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a runtime."""
    parser.add_argument(
        "--backend", choices=("auto", "tensorrt", "onnxruntime"), default="auto",
        help="auto: TensorRT where an engine was built for this device, else ONNX Runtime",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of ONNX Runtime (default: cpu)")
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: the physical cores)")
    parser.add_argument("--fp16", action="store_true", help="TensorRT 8 to 10: build or run the FP16 engine")


def open_runtime(contents: Contents, options: argparse.Namespace) -> OnnxRuntime | TensorRT:
    """Open the runtime that the options choose.

    Raises:
        Trouble: it is not here, or cannot run the model.
    """
    if options.threads is not None and options.threads < 1:
        raise Trouble(f"--threads {options.threads} is no number of threads: give 1 or more")
    backend = options.backend
    if backend == "auto":
        backend = "tensorrt" if options.fp16 or tensor_rt.ready(contents) else "onnxruntime"
    if backend == "tensorrt":
        return TensorRT(contents, fp16=True if options.fp16 else None)
    return OnnxRuntime(contents.model, contents.precision, options.device, options.threads)
