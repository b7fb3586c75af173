"""Which arguments an export takes: what cannot be made, or would not be verified, is refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.export.targets import Target
from yolo_mkd.settings import BadInput, refuse_unknown

PASSED_ON = ("device", "opset", "simplify")  # Ultralytics' arguments that leave what is checked the same
INSTEAD = {"nms": "head=one2one or head=one2many", "half": "quantize=16", "int8": "quantize=8", "end2end": "head="}
UNCHECKED = ("batch", "dynamic", "fraction", "workspace")
VERIFIED = {"onnx": (), "openvino": ("openvino",), "ncnn": ("ncnn", "pnnx"), "engine": ("tensorrt",)}  # what they need
PRECISIONS = {None: "fp32", 16: "fp16", 8: "int8"}


def refuse_ours(format: str, **given: Any) -> None:
    """Refuse arguments that only a verified format takes."""
    for key, value in given.items():
        if value not in (None, False):
            raise BadInput(f"{key}= is for {', '.join(VERIFIED)}: format={format} takes the arguments of yolo export")


def refuse_unverified(arguments: dict[str, Any]) -> None:
    """Refuse arguments that Ultralytics does not know, or that make a file the check does not cover."""
    for key, value in arguments.items():
        if key in INSTEAD:
            raise BadInput(f"{key}={value} is Ultralytics' word: use {INSTEAD[key]}")
        if key in UNCHECKED:
            raise BadInput(f"{key}={value} makes a file that is not verified: use yolo export of Ultralytics for it")
    known = ("model", "format", "head", "target", "quantize", "imgsz", "images", "data", "calibration", "seed")
    refuse_unknown(arguments, (*PASSED_ON, *known, "sensitivity", "json"), "export")


def refuse_pair(source: Path, format: str, target: Target, quantize: Any) -> None:
    """Refuse a format that cannot be made here, or not in this precision or for this target."""
    if quantize not in PRECISIONS or isinstance(quantize, bool):
        raise BadInput(f"quantize={quantize} is no precision: use 16 (FP16) or 8 (INT8), or leave it out for FP32")
    if quantize == 8 and format != "onnx":
        raise BadInput(f"quantize=8 is made as ONNX with Q/DQ pairs, not as {format}: use format=onnx")
    if target.name != "generic" and format not in {"onnx", "engine"}:
        raise BadInput(f"target={target.name} chooses what TensorRT reads, which is no {format}: use format=onnx")
    missing = [name for name in VERIFIED[format] if importlib.util.find_spec(name) is None]
    if missing and format == "engine":
        raise BadInput(
            "format=engine needs TensorRT, which is not installed here; an engine runs only where it was built: "
            f"make a bundle (yolo-mkd bundle model={source}) and build it there"
        )
    if missing:
        raise BadInput(f"format={format} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def whole(key: str, value: Any, least: int = 1) -> int:
    """Return a whole number that is large enough.

    Raises:
        BadInput: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{key}={value} is no whole number of {least} or more")
    return value


def image_size(imgsz: Any, stride: int) -> list[int]:
    """Height and width [pixels] from one number or two, each a multiple of the stride."""
    sides = [imgsz] * 2 if isinstance(imgsz, int) else list(imgsz) if isinstance(imgsz, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 and s % stride == 0 for s in sides):
        raise BadInput(
            f"imgsz={imgsz} is no multiple of the model's stride {stride}: give for example imgsz={20 * stride}"
        )
    return sides
