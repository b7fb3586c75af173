"""The names and signatures of NVIDIA's TensorRT bindings that the bundle's scripts use, read from the real wheels.

python benchmarks/tensorrt_api.py WHEEL... writes tensorrt_api.json, which tests/edge/test_tensorrt_api.py compares with
yolo_mkd/edge/tensor_rt.py and with the mocks. The wheels come from the package index:

    pip download --no-deps --only-binary :all: tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0

The bindings are imported with empty libraries in place of libnvinfer, which the index does not contain: no GPU is
needed, every class and signature is the real one, and nothing can be computed. Needs gcc and Linux.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "yolo_mkd/edge/tensor_rt.py"
TABLE = Path(__file__).with_suffix(".json")
OBJECTS = {  # variables of the script -> classes of the bindings; the module itself has no prefix
    "trt": "", "self.trt": "", "builder": "Builder.", "parser": "OnnxParser.", "config": "IBuilderConfig.",
    "self.runtime": "Runtime.", "self.engine": "ICudaEngine.", "self.context": "IExecutionContext.",
}  # fmt: skip
OURS = {"__version__"}  # set by the wheel's Python part, not by the bindings
LIBRARIES = ("nvinfer", "nvonnxparser", "nvparsers", "nvinfer_plugin")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins", "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi", "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)  # fmt: skip
# runs in a process that finds the empty libraries
READ = """
import importlib.util, json, re, sys
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
trt = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trt)
found = {}
for name in sys.argv[2:]:
    held = trt
    for part in name.split("."):
        held = getattr(held, part, None)
    if held is None:
        continue
    call = held.__init__ if isinstance(held, type) else held
    text = getattr(call, "__doc__", None) or ""
    own = call.__name__ if callable(call) else ""
    lines = re.findall(rf"^(?:\\d+\\. )?{own}(\\(self: .*)$", text, re.M) if own else []
    found[name] = lines or ("property" if isinstance(held, property) else "value")
print(json.dumps(found))
"""


def used_names() -> dict[str, set[int]]:
    """The names of the bindings that the script uses, each with the numbers of arguments it is called with."""
    found: dict[str, set[int]] = {}
    calls = {}
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls[node.func] = len(node.args) + len(node.keywords)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        base, _, rest = ast.unparse(node).rpartition(".")
        outer, _, inner = base.rpartition(".")
        if base in OBJECTS:
            name = f"{OBJECTS[base]}{rest}"
        elif outer in OBJECTS and not OBJECTS[outer] and inner[:1].isupper():  # trt.BuilderFlag.FP16
            name = f"{inner}.{rest}"
        else:
            continue
        if name not in OURS:
            found.setdefault(name, set()).update({calls[node]} if node in calls else set())
    return found


def empty_libraries(folder: Path) -> None:
    """Compile libraries with the symbols that the bindings import, none of which does anything."""
    source = folder / "empty.c"
    source.write_text("".join(f"int {name}() {{ return 0; }}\n" for name in SYMBOLS))
    for library in LIBRARIES:
        for major in (8, 10, 11):
            made = str(folder / f"lib{library}.so.{major}")
            subprocess.run(["gcc", "-w", "-shared", "-fPIC", str(source), "-o", made], check=True)


def read_wheel(wheel: Path, names: list[str]) -> dict[str, list[str] | str]:
    """The signatures of the names that a wheel's bindings have."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        empty_libraries(folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (module,) = folder.glob("*/tensorrt.so")
        command = [sys.executable, "-c", READ, str(module), *names]
        environment = {**os.environ, "LD_LIBRARY_PATH": place}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, list[str] | str] = json.loads(done.stdout)
    return found


def main(wheels: list[str]) -> None:
    """Write the table of the given wheels, and print which names each of them lacks."""
    names = sorted(used_names())
    table = {Path(w).name.split("-")[1]: read_wheel(Path(w), names) for w in wheels}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for version, found in table.items():
        print(f"{version}: {len(found)} of {len(names)}, not there: {', '.join(n for n in names if n not in found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
