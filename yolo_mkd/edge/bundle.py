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
    except (OSError, ValueError, RecursionError) as error:
        raise EdgeError(f"{path.name} cannot be read ({error}): copy the bundle again") from error


def inside(folder: Path, name: Any) -> Path:
    """The path of a file that a bundle names, directly in its folder.

    Raises:
        EdgeError: the name leads elsewhere.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\:\0"):
        raise EdgeError(f"{name!r:.80} is not the name of a file in {folder.name}: copy the bundle again")
    return folder / name


def require(valid: bool, file: str, field: str) -> None:
    """Raise EdgeError if a field of a file is missing or has another type or value than the scripts need."""
    if not valid:
        raise EdgeError(f"{file} is damaged ({field} is missing or wrong): copy the bundle again")


def is_list(value: Any, kind: Any, length: int = 0) -> bool:
    """Whether a value is a list of items of a type, and of a length if one is given; true is not an int."""
    fits = isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
    return fits and (not length or len(value) == length)


def validate_facts(facts: Any) -> None:
    """Check the fields of bundle.json that the scripts use.

    Raises:
        EdgeError: one of them is missing or wrong; it is written by `yolo_mkd.deploy.bundle`.
    """
    model = facts.get("model")
    require(isinstance(model, dict), "bundle.json", "model")
    require(isinstance(model.get("sha256"), str), "bundle.json", "model.sha256")
    require(model.get("precision") in ("fp32", "fp16", "int8"), "bundle.json", "model.precision")
    require(is_list(facts.get("names"), str) and len(facts["names"]) > 0, "bundle.json", "names")
    require(is_list(facts.get("imgsz"), int, 2) and min(facts["imgsz"]) > 0, "bundle.json", "imgsz")
    require(facts.get("head") in ("one2many", "one2one"), "bundle.json", "head")
    require(is_list(facts.get("output"), int, 3), "bundle.json", "output")


def read_bundle(folder: Path) -> Bundle:
    """Read bundle.json, and verify that model.onnx is the file it describes.

    Args:
        folder: the bundle's folder.

    Raises:
        EdgeError: a file is missing, damaged or from another bundle.
    """
    facts = read_json(folder / "bundle.json")
    require(isinstance(facts, dict), "bundle.json", "the file")
    if facts.get("schema") != SCHEMA:
        raise EdgeError(
            f"bundle.json has schema {facts.get('schema')}, but these scripts need {SCHEMA}: "
            "copy scripts and bundle.json of one bundle"
        )
    validate_facts(facts)
    model = inside(folder, facts["model"].get("file"))
    if not model.is_file():
        raise EdgeError(f"{model.name} is missing: copy the bundle again")
    digest = sha256(model)
    if digest != facts["model"]["sha256"]:
        raise EdgeError(f"{model.name} does not belong to this bundle (its SHA-256 differs): copy the bundle again")
    height, width = facts["imgsz"]
    return Bundle(
        folder, model, digest, facts["names"], (height, width), facts["head"], facts["model"]["precision"], facts
    )
