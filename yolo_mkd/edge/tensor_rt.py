"""TensorRT on the device: build an engine once, store it as a plain plan file, and run it without PyTorch.

The API differs by generation: 8 numbers its bindings, 10 names its tensors, 11 takes each precision from the file.
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

from .bundle import Bundle, EdgeError, sha256
from .cuda import TO_DEVICE, TO_HOST, Cuda

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = "engines"
ENGINE_KEY = ("onnx_sha256", "tensorrt", "gpu", "precision")


def import_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        EdgeError: it is not installed, or too old.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise EdgeError(
            f"tensorrt cannot be imported ({error}): on a Jetson install JetPack's python3-libnvinfer, "
            "and make a venv with --system-site-packages"
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < (8, 5):
        raise EdgeError(f"TensorRT {tensorrt.__version__} is too old: 8.5 or newer (JetPack 5.1) is needed")
    return tensorrt


def major(trt: Any) -> int:
    """The generation: 8, 10 or 11."""
    return int(trt.__version__.split(".")[0])


# The cache: a plan is valid for one file, one TensorRT version, one GPU and one precision


def engine_key(bundle: Bundle, trt: Any, cuda: Cuda, fp16: bool) -> dict[str, Any]:
    """The facts that an engine depends on.

    Raises:
        EdgeError: fp16 is requested from a TensorRT that takes the precision from the file.
    """
    precision = bundle.precision
    if fp16 and precision != "fp16":
        if major(trt) >= 11:
            raise EdgeError(
                f"--fp16 has no effect in TensorRT {trt.__version__}, which takes the precision from the file "
                f"({precision}): make an FP16 bundle with yolo-mkd bundle quantize=16, and build it without --fp16"
            )
        precision = "fp16" if precision == "fp32" else f"{precision}+fp16"
    return {
        "onnx_sha256": bundle.sha256,
        "tensorrt": trt.__version__,
        "gpu": cuda.device(),
        "precision": precision,
    }


def plan_path(folder: Path, wanted: dict[str, Any]) -> Path:
    """The path of a plan; its name contains what it depends on."""
    gpu = wanted["gpu"]
    parts = (
        wanted["onnx_sha256"][:12],
        f"trt{wanted['tensorrt']}",
        f"{gpu['name']}-sm{gpu['compute_capability']}-{gpu['multiprocessors']}mp",
        wanted["precision"],
    )
    return folder / FOLDER / (re.sub(r"[^\w.+-]+", "_", "_".join(parts)) + ".plan")


def rebuild_reason(folder: Path, wanted: dict[str, Any]) -> str:
    """Why an engine must be built, in one line; empty when a valid one exists."""
    plan = plan_path(folder, wanted)
    about = read_sidecar(plan)
    if about is not None and plan.is_file():
        changed = [name for name in ENGINE_KEY if about.get(name) != wanted[name]]
        if changed:
            return f"{plan.name} was built for another {changed[0]}"
        return "" if about.get("plan_sha256") == sha256(plan) else f"{plan.name} was changed after it was written"
    others = [found for found in map(read_sidecar, sorted((folder / FOLDER).glob("*.plan"))) if found]
    if not others:
        return "no engine has been built yet"
    nearest = min(others, key=lambda found: sum(found.get(name) != wanted[name] for name in ENGINE_KEY))
    changed = [
        f"{name} was {nearest.get(name)}, is {wanted[name]}" for name in ENGINE_KEY if nearest.get(name) != wanted[name]
    ]
    return "; ".join(changed) or f"{plan.name} is missing"


def read_sidecar(plan: Path) -> dict[str, Any] | None:
    """The contents of the JSON file beside a plan; None when it is missing or damaged."""
    try:
        about = json.loads(plan.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def engine_is_ready(bundle: Bundle) -> bool:
    """Whether the cache contains an engine for this machine; False when TensorRT is not installed."""
    if not (bundle.folder / FOLDER).is_dir():
        return False
    try:
        trt, cuda = import_tensorrt(), Cuda()
        keys = [engine_key(bundle, trt, cuda, fp16) for fp16 in fp16_choices(bundle, trt)]
        return any(not rebuild_reason(bundle.folder, key) for key in keys)
    except EdgeError:
        return False


def fp16_choices(bundle: Bundle, trt: Any) -> tuple[bool, ...]:
    """The values of --fp16 that give different engines here, the fastest first."""
    return (False,) if bundle.precision == "fp16" or major(trt) >= 11 else (True, False)


def build_engine(bundle: Bundle, fp16: bool = False, trt: Any = None, cuda: Cuda | None = None) -> Path:
    """Build the engine for this machine, unless the cache contains it; print which one, and why.

    Args:
        bundle: the bundle.
        fp16: let TensorRT 8 to 10 use FP16 where it is faster.
        trt: TensorRT's module.
        cuda: the CUDA runtime.

    Returns:
        The plan's file, which trtexec and other TensorRT tools can load.

    Raises:
        EdgeError: TensorRT cannot parse the file, or cannot build it here.
    """
    trt, cuda = trt or import_tensorrt(), cuda or Cuda()
    wanted = engine_key(bundle, trt, cuda, fp16)
    plan, reason = plan_path(bundle.folder, wanted), rebuild_reason(bundle.folder, wanted)
    if not reason:
        print(f"engine    {plan.name}, built before")
        return plan
    print(f"engine    building {plan.name} ({reason}); this takes minutes")
    start = perf_counter_ns()
    content = build_plan(bundle, wanted["precision"], trt)
    about = {**wanted, "cuda": cuda.version(), "build_s": (perf_counter_ns() - start) / 1e9}
    plan.parent.mkdir(exist_ok=True)
    partial = plan.with_suffix(".part")
    partial.write_bytes(content)
    about["plan_sha256"] = sha256(partial)
    plan.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(str(partial), str(plan))
    print(f"          {len(content) / 1e6:.1f} MB in {about['build_s']:.0f} s")
    return plan


def build_plan(bundle: Bundle, precision: str, trt: Any) -> bytes:
    """Parse the ONNX file and build the plan.

    Raises:
        EdgeError: the parser or the builder failed.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    explicit = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if major(trt) < 10 else 0
    network = builder.create_network(explicit)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(bundle.model.read_bytes()):
        errors = "; ".join(parser.get_error(n).desc() for n in range(parser.num_errors))
        raise EdgeError(
            f"TensorRT {trt.__version__} cannot parse {bundle.model.name}: {' '.join(errors.split())[:300]}"
        )
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it keeps 10 of the mantissa's 23 bits
    if major(trt) < 11:
        if "fp16" in precision:
            config.set_flag(trt.BuilderFlag.FP16)
        if "int8" in precision:
            config.set_flag(trt.BuilderFlag.INT8)  # the scales are the Q/DQ nodes' own
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EdgeError(
            f"TensorRT {trt.__version__} could not build an engine from {bundle.model.name}: see its messages above"
        )
    return bytes(plan)


# Running


class TensorRT:
    """An engine, opened on the GPU. `infer` copies in, computes and copies out, each timed with CUDA events."""

    segments = ("h2d", "compute", "d2h")
    provider, threads = "TensorRT", None

    def __init__(self, bundle: Bundle, fp16: bool | None = None, trt: Any = None, cuda: Cuda | None = None) -> None:
        """Open the engine of this machine.

        Args:
            bundle: the bundle.
            fp16: open the FP16 engine, or the other one; None opens the fastest that was built.
            trt: TensorRT's module.
            cuda: the CUDA runtime.

        Raises:
            EdgeError: it has not been built, or cannot be loaded.
        """
        self.trt, self.cuda = trt or import_tensorrt(), cuda or Cuda()
        kinds = fp16_choices(bundle, self.trt) if fp16 is None else (fp16,)
        keys = [engine_key(bundle, self.trt, self.cuda, kind) for kind in kinds]
        wanted = next((one for one in keys if not rebuild_reason(bundle.folder, one)), keys[-1])
        if reason := rebuild_reason(bundle.folder, wanted):
            advice = " --fp16" if fp16 else ""
            raise EdgeError(f"no engine for this device ({reason}): build it with python run.py --build{advice}")
        plan = plan_path(bundle.folder, wanted)
        start = perf_counter_ns()
        self.logger = self.trt.Logger(self.trt.Logger.WARNING)
        self.runtime = self.trt.Runtime(self.logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.engine is None:
            raise EdgeError(f"{plan.name} cannot be loaded: delete it and build again with python run.py --build")
        self.context = self.engine.create_execution_context()
        self.load_ms = (perf_counter_ns() - start) / 1e6
        self.arithmetic, self.accelerator = wanted["precision"], wanted["gpu"]["name"]
        self.versions = {"tensorrt": self.trt.__version__, "cuda": self.cuda.version()}
        self.named = major(self.trt) >= 10
        self.tensors = self.allocate()
        (self.given,) = (t for t in self.tensors if t["input"])
        self.results = [t for t in self.tensors if not t["input"]]
        self.events = [self.cuda.event() for _ in range(4)]

    def allocate(self) -> list[dict[str, Any]]:
        """Allocate memory on the host and on the device for every input and output."""
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
            EdgeError: TensorRT or CUDA failed.
        """
        begin, copied, computed, done = self.events
        np.copyto(self.given["host"], tensor, casting="same_kind")
        self.cuda.record(begin)
        self.queue_copy(self.given, TO_DEVICE)
        self.cuda.record(copied)
        stream = self.cuda.stream.value
        if self.named:
            good = self.context.execute_async_v3(stream)
        else:
            good = self.context.execute_async_v2([t["memory"].value for t in self.tensors], stream)
        if not good:
            raise EdgeError("TensorRT could not run the engine: see its messages above")
        self.cuda.record(computed)
        for result in self.results:
            self.queue_copy(result, TO_HOST)
        self.cuda.record(done)
        self.cuda.synchronize()
        pairs = zip(self.segments, ((begin, copied), (copied, computed), (computed, done)))
        return self.results[0]["host"], {name: self.cuda.elapsed_ms(*pair) for name, pair in pairs}

    def queue_copy(self, tensor: dict[str, Any], kind: int) -> None:
        """Queue the copy of a tensor to the device or back."""
        host, memory = tensor["host"].ctypes.data_as(ctypes.c_void_p), tensor["memory"]
        target, source = (memory, host) if kind == TO_DEVICE else (host, memory)
        self.cuda.copy(target, source, tensor["host"].nbytes, kind)
