"""A bundle's folder: bundle.json, and model.onnx, whose SHA-256 must be the one in bundle.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = "yolo-mkd/bundle/1"


class EdgeError(Exception):
    """An error that ends a script; its message is one line with the cause and what to do."""


class Bundle(NamedTuple):
    """The contents of a bundle that the scripts use."""

    folder: Path
    model: Path
    sha256: str  # of model.onnx
    names: list[str]
    imgsz: tuple[int, int]  # height, width [pixels]
    head: str  # one2many: raw boxes, NMS outside the file; one2one: final boxes
    precision: str  # of the file: fp32 | fp16 | int8
    facts: dict[str, Any]  # bundle.json, unchanged

    @property
    def output(self) -> list[int]:
        """The shape of the model's output."""
        return list(self.facts["output"])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        EdgeError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgeError(f"{path.name} cannot be read ({error}): copy the bundle again") from error


def read_bundle(folder: Path) -> Bundle:
    """Read bundle.json, and verify that model.onnx is the file it describes.

    Args:
        folder: the bundle's folder.

    Raises:
        EdgeError: a file is missing, damaged or from another bundle.
    """
    facts = read_json(folder / "bundle.json")
    if facts.get("schema") != SCHEMA:
        raise EdgeError(
            f"bundle.json has schema {facts.get('schema')}, but these scripts need {SCHEMA}: "
            "copy scripts and bundle.json of one bundle"
        )
    model = folder / facts["model"]["file"]
    if not model.is_file():
        raise EdgeError(f"{model.name} is missing: copy the bundle again")
    digest = sha256(model)
    if digest != facts["model"]["sha256"]:
        raise EdgeError(f"{model.name} does not belong to this bundle (its SHA-256 differs): copy the bundle again")
    height, width = facts["imgsz"]
    return Bundle(
        folder, model, digest, facts["names"], (height, width), facts["head"], facts["model"]["precision"], facts
    )
