"""The one writer of what a run leaves: JSON reports with a schema, whole-file writes, SHA-256, and text tables."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tabulate

from yolo_mkd.settings import BadInput, Failed, file_path
from yolo_mkd.settings.errors import short

PACKAGES = ("yolo-mkd", "ultralytics", "torch", "onnx", "onnxruntime", "numpy")
PART = ".part"  # ends the name of a file that is being written
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a disk, a quota or a limit that is reached


def write(path: str | Path, kind: str, figures: Mapping[str, Any], version: int = 1) -> Path:
    """Write `figures` as JSON, whole or not at all.

    Args:
        path: the file to write.
        kind: what was measured, such as `time`; the schema reads `yolo-mkd/time/1`.
        figures: the figures themselves.
        version: the schema's version, raised when a field changes its meaning.

    Returns:
        The path written.

    Raises:
        BadInput: something other than a regular file is there, or it cannot be written.
    """
    document = {"schema": f"yolo-mkd/{kind}/{version}", "versions": versions(), "machine": machine(), **figures}
    return write_text(path, json.dumps(document, indent=2, default=str) + "\n")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        BadInput: something other than a regular file is there, or it cannot be written.
    """
    path = Path(path)
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def check_writable(argument: str, value: Any) -> None:
    """Refuse a file that `atomic` could not write, before the work whose outcome it is to hold; nothing is left.

    Args:
        argument: the argument that names the file, for the message.
        value: the file; nothing is checked for None.

    Raises:
        BadInput: it is not a path, something that is not a regular file is there, or its folder cannot be written.
    """
    if value is None:
        return
    path = file_path(argument, value, f"{argument}.json").absolute()
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{argument}={path} is not a regular file and cannot be written: name another file")
        folder = next(p for p in path.parents if p.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=path.name[:200], suffix=PART):
            pass
    except OSError as error:
        raise BadInput(
            f"{argument}={short(path)} cannot be written ({error.strerror}): name a file in a folder of yours"
        ) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; the file written there replaces `path` at the end, if nothing failed.

    The folder is made where it is missing. A kill leaves the old file as it was, and at most a `.part` file beside it.
    The temporary name, `NAME.<pid>-<random>.part`, is unique, so several processes may write one file or one folder
    at the same time; the last to finish wins.

    Raises:
        BadInput: something other than a regular file is there, or the folder cannot be written.
        Failed: the disk is full.
    """
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a regular file and cannot be written: name another file")
    partial = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}): name a file in a folder of yours") from error
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())  # else a power cut may leave the new name with no content
        os.replace(partial, path)
    except OSError as error:
        if error.errno in FULL:
            raise Failed(f"{path} cannot be written ({error.strerror}): free some space") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], markdown: bool = False) -> str:
    """Rows as a text table: the first column to the left, the others to the right, cells as they are given.

    Args:
        rows: cells, already formatted as text where the format matters.
        headers: one a column.
        markdown: a GitHub table; else aligned columns for a terminal.
    """
    align = ["left", *["right"] * (len(headers) - 1)]
    style = "pipe" if markdown else "plain"
    text = tabulate.tabulate(rows, headers, style, colalign=align if rows else None, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


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
