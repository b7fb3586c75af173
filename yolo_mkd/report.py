"""One way to write down what was measured: JSON with a schema version, the versions and the machine."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("yolo-mkd", "ultralytics", "torch", "onnx", "onnxruntime", "numpy")


def write(path: str | Path, kind: str, figures: dict[str, Any], version: int = 1) -> Path:
    """Write `figures` as JSON, whole or not at all.

    Args:
        path: the file to write.
        kind: what was measured, such as `time`; the schema reads `yolo-mkd/time/1`.
        figures: the figures themselves.
        version: the schema's version, raised when a field changes its meaning.

    Returns:
        The path written.
    """
    path = Path(path)
    document = {"schema": f"yolo-mkd/{kind}/{version}", "versions": versions(), "machine": machine(), **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def versions() -> dict[str, str]:
    """The versions of the packages that a figure can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed here, so no figure can depend on it
    return found


def machine() -> dict[str, Any]:
    """The machine that measured: processor, cores and system, with no host name."""
    return {"processor": processor(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def processor() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
