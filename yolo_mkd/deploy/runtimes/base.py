"""The interface that all runtimes share."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.exported_model import ExportedModel

Tensor = NDArray[np.float32]  # 1 3 H W, RGB, 0..1
Inference = tuple[NDArray[Any], dict[str, float]]  # the head's output, milliseconds by segment


class Runtime(Protocol):
    """An opened file, ready to run."""

    model: ExportedModel
    provider: str  # the one in use: CPUExecutionProvider, CUDAExecutionProvider, OpenVINO CPU, ncnn CPU
    accelerator: str | None  # the GPU's name; None on the processor
    arithmetic: str  # the precision of the computation, which can be lower than the file's
    threads: int | None  # within an inference; None on a GPU
    segments: tuple[str, ...]  # compute; on a GPU h2d, compute, d2h
    load_ms: float
    versions: dict[str, str]

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image and return the head's output, valid until the next call, and the milliseconds by segment."""
