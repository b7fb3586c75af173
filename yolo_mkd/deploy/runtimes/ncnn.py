"""Run an NCNN folder on the processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from yolo_mkd.deploy.exported_model import model_file, read_exported_model, validate_shapes
from yolo_mkd.deploy.runtimes.base import Inference, Tensor
from yolo_mkd.settings import BadInput, Failed


class NCNN:
    """A loaded NCNN net."""

    segments: tuple[str, ...] = ("compute",)
    accelerator: str | None = None
    provider = "ncnn CPU"

    def __init__(self, path: Path, threads: int) -> None:
        """Load a folder's net and run it once, since only a run determines the shape of its output.

        Args:
            path: the *_ncnn_model folder.
            threads: for OpenMP.

        Raises:
            BadInput: ncnn is missing or cannot load the folder, or its output does not fit its metadata.
        """
        try:
            import ncnn
        except ImportError as error:
            raise BadInput(f"{path.name} needs ncnn: pip install ncnn") from error
        about = read_exported_model(path)
        files = [model_file(path, suffix) for suffix in (".param", ".bin")]
        self.library, self.net = ncnn, ncnn.Net()
        self.net.opt.num_threads = threads
        self.net.opt.use_vulkan_compute = False
        start = perf_counter_ns()
        if self.net.load_param(str(files[0])) or self.net.load_model(str(files[1])):
            raise BadInput(f"{path.name} cannot be loaded by ncnn: export it again")
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.threads: int | None = self.net.opt.num_threads
        # ncnn uses FP16 in each layer where the processor supports it
        self.arithmetic = "fp16 where the processor has it" if self.net.opt.use_fp16_arithmetic else "fp32"
        self.versions = {"ncnn": ncnn.__version__}
        names = self.net.input_names(), self.net.output_names()
        if [len(found) for found in names] != [1, 1]:
            raise BadInput(f"{path.name} has inputs and outputs {names}, but must have one of each: export it again")
        (self.input,), (self.output,) = names
        given = (1, 3, *about.imgsz)
        shape = self.infer(np.zeros(given, np.float32))[0].shape
        self.model = validate_shapes(replace(about, output=shape), given)

    def infer(self, tensor: Tensor) -> Inference:
        """Run one image.

        Raises:
            Failed: ncnn returned an error.
        """
        start = perf_counter_ns()
        with self.net.create_extractor() as extractor:
            extractor.input(self.input, self.library.Mat(tensor[0]))
            code, output = extractor.extract(self.output)
            milliseconds = (perf_counter_ns() - start) / 1e6
            if code:
                raise Failed(f"ncnn could not run the net (code {code}): export it again")
            return np.array(output)[None], {"compute": milliseconds}
