"""Run a .tflite file with LiteRT on the processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from yolo_mkd.deploy.exported_model import read_exported_model, validate_shapes
from yolo_mkd.deploy.runtimes.base import Inference, Tensor
from yolo_mkd.settings import BadInput


class LiteRT:
    """A loaded LiteRT interpreter, with XNNPACK as it is by default."""

    segments: tuple[str, ...] = ("compute",)
    accelerator: str | None = None
    provider = "LiteRT CPU"

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Args:
            path: the .tflite file.
            threads: within an operator.

        Raises:
            BadInput: LiteRT is missing or cannot load the file, or its shapes do not fit its metadata.
        """
        try:
            import ai_edge_litert
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise BadInput(f"{path.name} needs LiteRT: pip install ai-edge-litert") from error
        about = read_exported_model(path)
        start = perf_counter_ns()
        try:
            self.interpreter = Interpreter(str(path), num_threads=threads)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split())[:160]
            raise BadInput(f"{path.name} cannot be loaded by LiteRT ({cause}): export it again") from error
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.threads: int | None = threads
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        if [len(inputs), len(outputs)] != [1, 1]:
            raise BadInput(
                f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs, but must have one of each: "
                "export it again"
            )
        self.given, self.result = inputs[0]["index"], outputs[0]["index"]
        shape = tuple(int(side) for side in outputs[0]["shape"])
        self.model = validate_shapes(replace(about, output=shape), tuple(int(side) for side in inputs[0]["shape"]))
        self.arithmetic = self.model.precision
        self.versions = {"ai-edge-litert": str(ai_edge_litert.__version__)}
        height, width = self.model.imgsz
        # Ultralytics divides the boxes of head one2many by the image's sides, so that INT8 has levels for scores
        self.sides = np.array([width, height, width, height], np.float32)[:, None]

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image; boxes are returned in pixels."""
        start = perf_counter_ns()
        self.interpreter.set_tensor(self.given, tensor)
        self.interpreter.invoke()
        output = self.interpreter.get_tensor(self.result)  # a copy
        milliseconds = (perf_counter_ns() - start) / 1e6
        if self.model.head == "one2many":
            output[0, :4] *= self.sides
        return output, {"compute": milliseconds}
