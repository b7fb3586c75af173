"""A bundle's folder: bundle.json, and model.onnx held against the SHA-256 that bundle.json gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = "yolo-mkd/bundle/1"


class Trouble(Exception):
    """What stops a script, in one line: what is wrong and what to do."""


class Contents(NamedTuple):
    """What the scripts use of a bundle."""

    folder: Path
    model: Path
    sha256: str  # of model.onnx
    names: list[str]
    imgsz: tuple[int, int]  # height, width [pixels]
    head: str  # one2many: raw boxes, NMS outside the file; one2one: final boxes
    precision: str  # fp32 | fp16 | int8
    about: dict[str, Any]  # bundle.json as it stands


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        Trouble: it is missing or torn.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Trouble(f"{path.name} cannot be read ({error}): copy the bundle again") from error


def read(folder: Path) -> Contents:
    """Read a bundle's bundle.json, and make sure that its model.onnx is the one it describes.

    Args:
        folder: the bundle's folder.

    Raises:
        Trouble: a file is missing, torn or another one.
    """
    about = read_json(folder / "bundle.json")
    if about.get("schema") != SCHEMA:
        raise Trouble(
            f"bundle.json is of schema {about.get('schema')}, these scripts read {SCHEMA}: do not mix bundles"
        )
    model = folder / about["model"]["file"]
    if not model.is_file():
        raise Trouble(f"{model.name} is missing: copy the bundle again")
    digest = sha256(model)
    if digest != about["model"]["sha256"]:
        raise Trouble(f"{model.name} is not the file of this bundle (its SHA-256 differs): copy the bundle again")
    height, width = about["imgsz"]
    return Contents(
        folder, model, digest, about["names"], (height, width), about["head"], about["model"]["precision"], about
    )
