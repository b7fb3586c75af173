"""TensorRT on the device: build an engine once, keep it as a pure plan file, and run it without PyTorch.

Three generations differ: 8 numbers its bindings, 10 names its tensors, 11 takes every precision from the file.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from .contents import Contents, Trouble, sha256
from .cuda import TO_DEVICE, TO_HOST, Cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = "engines"
KEY = ("onnx_sha256", "tensorrt", "gpu", "precision")


def library() -> Any:
    """Import TensorRT.

    Raises:
        Trouble: it is not installed here, or too old.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise Trouble(
            f"tensorrt cannot be imported ({error}): on a Jetson install JetPack's python3-libnvinfer, "
            "and make a venv with --system-site-packages"
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < (8, 5):
        raise Trouble(f"TensorRT {tensorrt.__version__} is too old: 8.5 or newer (JetPack 5.1) is needed")
    return tensorrt


def major(trt: Any) -> int:
    """The generation: 8, 10 or 11."""
    return int(trt.__version__.split(".")[0])


# The cache: a plan is good for one file, one TensorRT, one GPU, one precision


def key(contents: Contents, trt: Any, cuda: Cuda, fp16: bool) -> dict[str, Any]:
    """What an engine depends on.

    Raises:
        Trouble: fp16 is asked of a TensorRT that takes the precision from the file.
    """
    precision = contents.precision
    if fp16 and precision != "fp16":
        if major(trt) >= 11:
            raise Trouble(
                f"TensorRT {trt.__version__} takes the precision from the file, and this one is {precision}: "
                "make an FP16 bundle with yolo-mkd bundle quantize=16, and build it without --fp16"
            )
        precision = "fp16" if precision == "fp32" else f"{precision}+fp16"
    return {
        "onnx_sha256": contents.sha256,
        "tensorrt": trt.__version__,
        "gpu": cuda.device(),
        "precision": precision,
    }


def plan_path(folder: Path, wanted: dict[str, Any]) -> Path:
    """The plan's file, its key in its name."""
    gpu = wanted["gpu"]
    parts = (
        wanted["onnx_sha256"][:12],
        f"trt{wanted['tensorrt']}",
        f"{gpu['name']}-sm{gpu['compute_capability']}-{gpu['multiprocessors']}mp",
        wanted["precision"],
    )
    return folder / FOLDER / (re.sub(r"[^\w.+-]+", "_", "_".join(parts)) + ".plan")


def stale(folder: Path, wanted: dict[str, Any]) -> str:
    """Why there is no engine to use; empty when there is one."""
    plan = plan_path(folder, wanted)
    about = sidecar(plan)
    if about is not None and plan.is_file():
        changed = [name for name in KEY if about.get(name) != wanted[name]]
        if changed:
            return f"{plan.name} was built for another {changed[0]}"
        return "" if about.get("plan_sha256") == sha256(plan) else f"{plan.name} is not as it was written"
    others = [found for found in map(sidecar, sorted((folder / FOLDER).glob("*.plan"))) if found]
    if not others:
        return "no engine was built yet"
    nearest = min(others, key=lambda found: sum(found.get(name) != wanted[name] for name in KEY))
    changed = [
        f"{name} was {nearest.get(name)}, is {wanted[name]}" for name in KEY if nearest.get(name) != wanted[name]
    ]
    return "; ".join(changed) or f"{plan.name} is missing"


def sidecar(plan: Path) -> dict[str, Any] | None:
    """What the JSON beside a plan says of it; None when there is none that can be read."""
    try:
        about = json.loads(plan.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def ready(contents: Contents) -> bool:
    """Whether an engine for this machine lies in the cache, without a complaint when TensorRT is not here."""
    if not (contents.folder / FOLDER).is_dir():
        return False
    try:
        trt, cuda = library(), Cuda()
        return any(not stale(contents.folder, key(contents, trt, cuda, fp16)) for fp16 in choices(contents, trt))
    except Trouble:
        return False


def choices(contents: Contents, trt: Any) -> tuple[bool, ...]:
    """The settings of --fp16 that make an engine of its own here, the fastest first."""
    return (False,) if contents.precision == "fp16" or major(trt) >= 11 else (True, False)


def build(contents: Contents, fp16: bool = False, trt: Any = None, cuda: Cuda | None = None) -> Path:
    """Build the engine for this machine, unless the cache holds it; say which, and why.

    Args:
        contents: the bundle.
        fp16: let TensorRT 8 to 10 use FP16 where it is faster.
        trt: TensorRT's module.
        cuda: the CUDA runtime.

    Returns:
        The plan's file, which trtexec and any other tool of TensorRT can load.

    Raises:
        Trouble: TensorRT does not take the file, or cannot build it here.
    """
    trt, cuda = trt or library(), cuda or Cuda()
    wanted = key(contents, trt, cuda, fp16)
    plan, reason = plan_path(contents.folder, wanted), stale(contents.folder, wanted)
    if not reason:
        print(f"engine    {plan.name}, as built before")
        return plan
    print(f"engine    building {plan.name} ({reason}); this takes minutes")
    start = perf_counter_ns()
    content = serialized(contents, wanted["precision"], trt)
    about = {**wanted, "cuda": cuda.version(), "build_s": (perf_counter_ns() - start) / 1e9}
    plan.parent.mkdir(exist_ok=True)
    partial = plan.with_suffix(".part")
    partial.write_bytes(content)
    about["plan_sha256"] = sha256(partial)
    plan.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(str(partial), str(plan))
    print(f"          {len(content) / 1e6:.1f} MB in {about['build_s']:.0f} s")
    return plan


def serialized(contents: Contents, precision: str, trt: Any) -> bytes:
    """Parse the ONNX file and build the plan.

    Raises:
        Trouble: the parser or the builder gave up.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    explicit = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if major(trt) < 10 else 0
    network = builder.create_network(explicit)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(contents.model.read_bytes()):
        errors = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise Trouble(
            f"TensorRT {trt.__version__} does not take {contents.model.name}: {' '.join(errors.split())[:300]}"
        )
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and keeps 10 bits of the mantissa's 23
    if major(trt) < 11:
        if "fp16" in precision:
            config.set_flag(trt.BuilderFlag.FP16)
        if "int8" in precision:
            config.set_flag(trt.BuilderFlag.INT8)  # the scales are the Q/DQ nodes' own
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Trouble(
            f"TensorRT {trt.__version__} could not build an engine of {contents.model.name}: see its messages"
        )
    return bytes(plan)


# Running


class TensorRT:
    """A built engine, open on the GPU. `infer` copies in, computes and copies out, each timed by CUDA events."""

    segments = ("h2d", "compute", "d2h")
    provider, threads = "TensorRT", None

    def __init__(self, contents: Contents, fp16: bool | None = None, trt: Any = None, cuda: Cuda | None = None) -> None:
        """Open the engine of this machine.

        Args:
            contents: the bundle.
            fp16: the FP16 engine or the other; None takes the fastest there is.
            trt: TensorRT's module.
            cuda: the CUDA runtime.

        Raises:
            Trouble: it was not built yet, or cannot be loaded.
        """
        self.trt, self.cuda = trt or library(), cuda or Cuda()
        kinds = choices(contents, self.trt) if fp16 is None else (fp16,)
        keys = [key(contents, self.trt, self.cuda, kind) for kind in kinds]
        wanted = next((one for one in keys if not stale(contents.folder, one)), keys[-1])
        if reason := stale(contents.folder, wanted):
            advice = " --fp16" if fp16 else ""
            raise Trouble(f"no engine for this device ({reason}): python run.py --build{advice}")
        plan = plan_path(contents.folder, wanted)
        start = perf_counter_ns()
        self.logger = self.trt.Logger(self.trt.Logger.WARNING)
        self.runtime = self.trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            raise Trouble(f"{plan.name} cannot be loaded: delete it and build again with python run.py --build")
        self.context = self.engine.create_execution_context()
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.precision, self.accelerator = wanted["precision"], wanted["gpu"]["name"]
        self.versions = {"tensorrt": self.trt.__version__, "cuda": self.cuda.version()}
        self.named = major(self.trt) >= 10
        self.tensors = self.allocate()
        (self.given,) = (t for t in self.tensors if t["input"])
        self.results = [t for t in self.tensors if not t["input"]]
        self.events = [self.cuda.event() for _ in range(4)]

    def allocate(self) -> list[dict[str, Any]]:
        """Give every input and output its memory on the host and on the device."""
        kinds = {self.trt.float32: np.float32, self.trt.float16: np.float16}  # 8.5's nptype needs an old numpy
        tensors = []
        for n in range(self.engine.num_io_tensors if self.named else self.engine.num_bindings):
            if self.named:
                name = self.engine.get_tensor_name(n)
                shape, dtype = self.engine.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
                is_input = self.engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT
            else:
                shape, dtype = self.engine.get_binding_shape(n), self.engine.get_binding_dtype(n)
                is_input = self.engine.binding_is_input(n)
            host = self.cuda.pinned(tuple(shape), kinds[dtype])
            memory = self.cuda.device_memory(host.nbytes)
            if self.named:
                self.context.set_tensor_address(name, memory.value)
            tensors.append({"input": is_input, "host": host, "memory": memory})
        return tensors

    def infer(self, tensor: NDArray[np.float32]) -> tuple[NDArray[Any], dict[str, float]]:
        """Run one image.

        Args:
            tensor: 1 3 H W.

        Returns:
            The head's output, valid until the next call, and the milliseconds of each segment.

        Raises:
            Trouble: TensorRT or CUDA gave up.
        """
        begin, copied, computed, done = self.events
        np.copyto(self.given["host"], tensor, casting="same_kind")
        self.cuda.record(begin)
        self.move(self.given, TO_DEVICE)
        self.cuda.record(copied)
        stream = self.cuda.stream.value
        if self.named:
            good = self.context.execute_async_v3(stream)
        else:
            good = self.context.execute_async_v2([t["memory"].value for t in self.tensors], stream)
        if not good:
            raise Trouble("TensorRT could not run the engine: see its messages")
        self.cuda.record(computed)
        for result in self.results:
            self.move(result, TO_HOST)
        self.cuda.record(done)
        self.cuda.synchronize()
        pairs = zip(self.segments, ((begin, copied), (copied, computed), (computed, done)))
        return self.results[0]["host"], {name: self.cuda.elapsed_ms(*pair) for name, pair in pairs}

    def move(self, tensor: dict[str, Any], kind: int) -> None:
        """Queue the copy of a tensor to the device or back."""
        host, memory = tensor["host"].ctypes.data_as(ctypes.c_void_p), tensor["memory"]
        target, source = (memory, host) if kind == TO_DEVICE else (host, memory)
        self.cuda.copy(target, source, tensor["host"].nbytes, kind)
