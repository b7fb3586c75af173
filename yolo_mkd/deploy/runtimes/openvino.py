"""Run an OpenVINO folder on the processor, tuned for the latency of one image at a time."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns

from yolo_mkd.deploy.exported_model import model_file, read_exported_model
from yolo_mkd.deploy.runtimes.base import Inference, Tensor
from yolo_mkd.settings import BadInput, Failed

PRECISION_NAMES = {"f32": "fp32", "f16": "fp16"}  # OpenVINO's names -> ours


class OpenVINO:
    """A compiled OpenVINO model with one inference request."""

    segments: tuple[str, ...] = ("compute",)
    accelerator: str | None = None

    def __init__(self, path: Path, threads: int) -> None:
        """Compile a folder's model.

        Args:
            path: the *_openvino_model folder.
            threads: on the processor.

        Raises:
            BadInput: OpenVINO is missing or cannot load the folder.
            Failed: it uses another device or another number of threads.
        """
        try:
            import openvino
        except ImportError as error:
            raise BadInput(f"{path.name} needs OpenVINO: pip install openvino") from error
        self.model = read_exported_model(path)
        start = perf_counter_ns()
        # LATENCY is what benchmark_app -hint latency and Ultralytics use; OpenVINO's default is for throughput.
        # f32 as in the check: by default OpenVINO uses bf16 where the processor has it, even for an FP32 file
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            compiled = openvino.Core().compile_model(model_file(path, ".xml"), "CPU", config)
        except RuntimeError as error:
            cause = " ".join(str(error).split())[:160]
            raise BadInput(f"{path.name} cannot be loaded by OpenVINO ({cause}): export it again") from error
        self.load_ms = (perf_counter_ns() - start) / 1e6
        devices = compiled.get_property("EXECUTION_DEVICES")
        self.threads: int | None = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if devices != ["CPU"] or self.threads != threads:
            raise Failed(
                f"OpenVINO runs {path.name} on {devices} with {self.threads} threads, not on CPU with {threads}"
            )
        self.provider = "OpenVINO CPU"
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.arithmetic = PRECISION_NAMES.get(precision, precision)
        self.versions = {"openvino": str(openvino.__version__)}
        self.request = compiled.create_infer_request()

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image; the input is not copied."""
        start = perf_counter_ns()
        self.request.infer({0: tensor}, share_inputs=True, share_outputs=True)
        milliseconds = (perf_counter_ns() - start) / 1e6
        return self.request.get_output_tensor(0).data, {"compute": milliseconds}
