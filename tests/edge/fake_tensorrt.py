"""Mocks of TensorRT 8.5, 10 and 11 and of libcudart, as strict as the real ones where a script could be wrong.

Each generation has only the names that the scripts should use with it. An engine computes through ONNX Runtime, on
"device memory" that only copies of the right kind may touch; what is queued on a stream happens when it is waited for.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

MAGIC = b"fake plan\n"
GPU = {"name": "Orin", "compute_capability": "8.7", "multiprocessors": 8}
COPY_MS, COMPUTE_MS = 0.25, 3.0
INVALID, NOT_READY = 1, 600


class Function:
    """A function of a library: it carries its signature, as ctypes' do, and counts its arguments."""

    argtypes: tuple[Any, ...] = ()
    restype: Any = None

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body = body

    def __call__(self, *arguments: Any) -> Any:
        assert len(arguments) == len(self.argtypes), self.body.__name__
        return self.body(*arguments)


class Cudart:
    """libcudart: host memory that calls itself device memory, one stream, a clock that the work moves."""

    def __init__(self, gpu: dict[str, Any] | None = None) -> None:
        self.gpu = gpu or GPU
        self.buffers: dict[int, tuple[Any, bool]] = {}  # address -> memory, whether on the device
        self.queue: list[Callable[[], None]] = []
        self.events: dict[int, float | None] = {}
        self.clock_ms = 0.0
        for name in dir(type(self)):
            if name.startswith("cuda"):
                setattr(self, name, Function(getattr(self, name)))

    def allocate(self, pointer: Any, size: int, device: bool) -> int:
        memory = ctypes.create_string_buffer(size)
        self.buffers[ctypes.addressof(memory)] = memory, device
        pointer._obj.value = ctypes.addressof(memory)
        return 0

    def cudaMalloc(self, pointer: Any, size: int) -> int:
        return self.allocate(pointer, size, device=True)

    def cudaHostAlloc(self, pointer: Any, size: int, flags: int) -> int:
        return self.allocate(pointer, size, device=False)

    def cudaMemcpyAsync(self, target: Any, source: Any, size: int, kind: int, stream: Any) -> int:
        sides = tuple(self.buffers.get(a.value, (None, None))[1] for a in (target, source))
        if sides != {1: (True, False), 2: (False, True)}.get(kind):
            return INVALID
        self.queue.append(lambda: self.work(COPY_MS, lambda: ctypes.memmove(target.value, source.value, size)))
        return 0

    def work(self, took_ms: float, body: Callable[[], Any]) -> None:
        body()
        self.clock_ms += took_ms

    def cudaStreamCreate(self, pointer: Any) -> int:
        pointer._obj.value = 77
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        for step in self.queue:
            step()
        self.queue.clear()
        return 0

    def cudaEventCreate(self, pointer: Any) -> int:
        pointer._obj.value = 1000 + len(self.events)
        self.events[pointer._obj.value] = None
        return 0

    def cudaEventRecord(self, event: Any, stream: Any) -> int:
        self.events[event.value] = None
        self.queue.append(lambda: self.events.__setitem__(event.value, self.clock_ms))
        return 0

    def cudaEventElapsedTime(self, pointer: Any, start: Any, end: Any) -> int:
        first, last = self.events[start.value], self.events[end.value]
        if first is None or last is None:
            return NOT_READY
        pointer._obj.value = last - first
        return 0

    def cudaDeviceGetAttribute(self, pointer: Any, attribute: int, device: int) -> int:
        major, minor = self.gpu["compute_capability"].split(".")
        pointer._obj.value = {16: self.gpu["multiprocessors"], 75: int(major), 76: int(minor)}[attribute]
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:
        properties.value = self.gpu["name"].encode() + b"\0rest"
        return 0

    def cudaRuntimeGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = 12060
        return 0

    def cudaGetErrorString(self, code: int) -> bytes:
        return {INVALID: b"invalid argument", NOT_READY: b"device not ready"}[code]


class Mode(IntEnum):
    INPUT, OUTPUT = 1, 2


class Kind(IntEnum):
    FLOAT, HALF = 0, 1


def tensorrt(version: str, cudart: Cudart) -> SimpleNamespace:
    """The module `tensorrt` of a version; `builds` records the flags each engine was built with."""
    major = int(version.split(".")[0])
    flags = ["TF32"] if major >= 11 else ["FP16", "INT8", "TF32"]
    trt = SimpleNamespace(__version__=version, builds=[], TensorIOMode=Mode, float32=Kind.FLOAT, float16=Kind.HALF)
    trt.BuilderFlag = SimpleNamespace(**{name: name for name in flags})
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(**({"EXPLICIT_BATCH": 0} if major < 10 else {}))

    class Logger:
        WARNING = 2

        def __init__(self, severity: int) -> None: ...

    class Config:
        def __init__(self) -> None:
            self.flags = {"TF32"}

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: str) -> None:
            self.flags.discard(flag)

    class Builder:
        def __init__(self, logger: Logger) -> None: ...

        def create_network(self, bits: int) -> SimpleNamespace:
            assert bits == (1 if major < 10 else 0)  # explicit batch is a choice in 8, and all there is later
            return SimpleNamespace(onnx=b"")

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: SimpleNamespace, config: Config) -> memoryview | None:
            if not network.onnx:
                return None
            trt.builds.append(config.flags)
            about = json.dumps({"version": version, "gpu": cudart.gpu}).encode()
            return memoryview(MAGIC + about + b"\n" + network.onnx)

    class OnnxParser:
        def __init__(self, network: SimpleNamespace, logger: Logger) -> None:
            self.network, self.num_errors = network, 0

        def parse(self, content: bytes) -> bool:
            import onnx

            try:
                onnx.checker.check_model(content)
            except Exception as error:  # whatever ONNX raises, the real parser only returns False
                self.num_errors, self.error = 1, str(error)
                return False
            self.network.onnx = content
            return True

        def get_error(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(desc=lambda: self.error)

    class Runtime:
        def __init__(self, logger: Logger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            magic, about, content = (*plan.split(b"\n", 2), b"", b"")[:3]
            if magic + b"\n" != MAGIC or json.loads(about) != {"version": version, "gpu": cudart.gpu}:
                return None
            return (Bound if major < 10 else Named)(content, cudart)

    trt.Logger, trt.Builder, trt.OnnxParser, trt.Runtime = Logger, Builder, OnnxParser, Runtime
    return trt


class Engine:
    """What both kinds of engine share: the tensors of an ONNX file, and its computation."""

    def __init__(self, content: bytes, cudart: Cudart) -> None:
        import onnxruntime

        self.session, self.cudart = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]), cudart
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.all = [(t.name, t in inputs, tuple(t.shape)) for t in (*inputs, *outputs)]

    def create_execution_context(self) -> Engine:
        return self

    def enqueue(self, addresses: dict[str, int], stream: int) -> bool:
        assert stream == 77
        views = {}
        for name, _, shape in self.all:
            memory, device = self.cudart.buffers[addresses[name]]
            assert device
            views[name] = np.frombuffer(memory, np.float32, int(np.prod(shape))).reshape(shape)

        def compute() -> None:
            given = {name: views[name].copy() for name, is_input, _ in self.all if is_input}
            for (name, _, _), result in zip(self.all[len(given) :], self.session.run(None, given), strict=True):
                views[name][...] = result

        self.cudart.queue.append(lambda: self.cudart.work(COMPUTE_MS, compute))
        return True


class Bound(Engine):
    """An engine of TensorRT 8: bindings by number."""

    @property
    def num_bindings(self) -> int:
        return len(self.all)

    def get_binding_shape(self, index: int) -> tuple[int, ...]:
        return self.all[index][2]

    def get_binding_dtype(self, index: int) -> Kind:
        return Kind.FLOAT

    def binding_is_input(self, index: int) -> bool:
        return self.all[index][1]

    def execute_async_v2(self, bindings: list[int], stream: int) -> bool:
        return self.enqueue(dict(zip((t[0] for t in self.all), bindings, strict=True)), stream)


class Named(Engine):
    """An engine of TensorRT 10 and later: tensors by name."""

    @property
    def num_io_tensors(self) -> int:
        return len(self.all)

    def get_tensor_name(self, index: int) -> str:
        return self.all[index][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(t[2] for t in self.all if t[0] == name)

    def get_tensor_dtype(self, name: str) -> Kind:
        return Kind.FLOAT

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if next(t[1] for t in self.all if t[0] == name) else Mode.OUTPUT

    def set_tensor_address(self, name: str, address: int) -> None:
        self.__dict__.setdefault("addresses", {})[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        return self.enqueue(self.addresses, stream)
