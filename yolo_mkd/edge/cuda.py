"""The CUDA runtime through ctypes: memory, copies, a stream and events, with the signatures of CUDA's documentation."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .bundle import EdgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreate": (POINTER(c_void_p),),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
}
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
MULTIPROCESSORS, MAJOR, MINOR = 16, 75, 76  # cudaDeviceAttr
NAME_BYTES = 256  # cudaDeviceProp begins with the name, in every version
PROPERTIES_BYTES = 16384  # more than any version's cudaDeviceProp


def libraries() -> list[str]:
    """Possible paths of libcudart: the loader's path, the toolkit's folder, NVIDIA's wheels; the newest first."""
    places = [Path("/usr/local/cuda/lib64"), *(Path(p) / "nvidia" for p in sys.path)]
    found = [str(f) for place in places for f in sorted(place.glob("**/libcudart.so*"), reverse=True)]
    named = ctypes.util.find_library("cudart")
    return [*([named] if named else []), *found, "libcudart.so"]


def open_library() -> Any:
    """Load libcudart.

    Raises:
        EdgeError: it is not installed.
    """
    for name in libraries():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue  # the next place
    raise EdgeError("libcudart was not found: install CUDA (on a Jetson: JetPack), or use --backend onnxruntime")


class Cuda:
    """Device 0 and one stream. A CUDA call that fails raises EdgeError with CUDA's own message."""

    def __init__(self, library: Any = None) -> None:
        self.library = library or open_library()
        for name, arguments in SIGNATURES.items():
            function = getattr(self.library, name)
            function.argtypes, function.restype = arguments, c_int
        self.library.cudaGetErrorString.argtypes, self.library.cudaGetErrorString.restype = (c_int,), c_char_p
        self.stream = c_void_p()
        self.call("cudaStreamCreate", byref(self.stream))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime.

        Raises:
            EdgeError: it returned an error.
        """
        code = getattr(self.library, name)(*arguments)
        if code:
            raise EdgeError(f"{name}: {self.library.cudaGetErrorString(code).decode()}")

    def device_memory(self, size: int) -> c_void_p:
        """Allocate bytes on the device."""
        address = c_void_p()
        self.call("cudaMalloc", byref(address), size)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate an array in page-locked memory of the host."""
        address, size = c_void_p(), int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.call("cudaHostAlloc", byref(address), size, 0)
        content = (ctypes.c_char * size).from_address(address.value or 0)
        return np.frombuffer(content, dtype).reshape(shape)

    def copy(self, target: Any, source: Any, size: int, kind: int) -> None:
        """Queue a copy of bytes on the stream."""
        self.call("cudaMemcpyAsync", target, source, size, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until all queued work of the stream is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def event(self) -> c_void_p:
        """Make an event."""
        event = c_void_p()
        self.call("cudaEventCreate", byref(event))
        return event

    def record(self, event: c_void_p) -> None:
        """Queue an event on the stream."""
        self.call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, start: c_void_p, end: c_void_p) -> float:
        """The time between two events that have happened [ms]."""
        elapsed = c_float()
        self.call("cudaEventElapsedTime", byref(elapsed), start, end)
        return elapsed.value

    def device(self) -> dict[str, Any]:
        """The GPU's name, compute capability and number of multiprocessors, which a TensorRT engine depends on."""
        properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", properties, 0)
        name = properties.raw[:NAME_BYTES].split(b"\0")[0].decode()
        return {
            "name": name,
            "compute_capability": f"{self.attribute(MAJOR)}.{self.attribute(MINOR)}",
            "multiprocessors": self.attribute(MULTIPROCESSORS),
        }

    def attribute(self, number: int) -> int:
        """One of the device's attributes."""
        value = c_int()
        self.call("cudaDeviceGetAttribute", byref(value), number, 0)
        return value.value

    def version(self) -> str:
        """The runtime's version, such as 12.6."""
        value = c_int()
        self.call("cudaRuntimeGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"
