"""Validation of the arguments of an export: what cannot be made, or would not be verified, is a one-line error."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.export.targets import Target
from yolo_mkd.settings import BadInput, refuse_unknown

PASSED_ON = ("device", "opset", "simplify")  # Ultralytics' arguments that do not change what is verified
INSTEAD = {"nms": "head=one2one or head=one2many", "half": "quantize=16", "int8": "quantize=8", "end2end": "head="}
UNCHECKED = ("batch", "dynamic", "fraction", "workspace")
VERIFIED = {  # packages needed
    "onnx": (),
    "openvino": ("openvino",),
    "ncnn": ("ncnn", "pnnx"),
    "litert": ("litert_torch", "ai_edge_litert"),
    "engine": ("tensorrt",),
}
PRECISIONS = {None: "fp32", 16: "fp16", 8: "int8"}


def refuse_for_unverified_format(format: str, **given: Any) -> None:
    """Raise BadInput for an argument that only a verified format accepts."""
    for key, value in given.items():
        if value not in (None, False):
            raise BadInput(f"{key}= is for {', '.join(VERIFIED)}: format={format} takes the arguments of yolo export")


def refuse_unverifiable(arguments: dict[str, Any]) -> None:
    """Raise BadInput for an argument that Ultralytics does not have, or whose result would not be verified."""
    for key, value in arguments.items():
        if key in INSTEAD:
            raise BadInput(f"{key}={value} is not used by yolo-mkd export: use {INSTEAD[key]}")
        if key in UNCHECKED:
            raise BadInput(f"{key}={value} makes a file that is not verified: use yolo export of Ultralytics for it")
    known = ("model", "format", "head", "target", "quantize", "imgsz", "images", "data", "calibration", "seed")
    refuse_unknown(arguments, (*PASSED_ON, *known, "sensitivity", "json"), "export")


def refuse_unsupported(source: Path, format: str, target: Target, quantize: Any) -> None:
    """Raise BadInput for a format that cannot be made here, or not with this precision or for this target."""
    if quantize not in tuple(PRECISIONS) or isinstance(quantize, bool):
        raise BadInput(f"quantize={quantize} must be 16 (FP16) or 8 (INT8); leave it out for FP32")
    if quantize == 8 and format != "onnx":
        raise BadInput(f"quantize=8 is made as ONNX with Q/DQ pairs, not as {format}: use format=onnx")
    if quantize and format == "litert":
        raise BadInput(
            "quantize=16 is not a file of its own in LiteRT, whose GPU delegate computes an FP32 file in FP16"
        )
    if target.name != "generic" and format not in {"onnx", "engine"}:
        raise BadInput(f"target={target.name} is for TensorRT, which cannot read format={format}: use format=onnx")
    missing = [name for name in VERIFIED[format] if importlib.util.find_spec(name) is None]
    if missing and format == "engine":
        raise BadInput(
            "format=engine needs TensorRT, which is not installed here, and an engine runs only on the device that "
            f"built it: make a bundle (yolo-mkd bundle model={source}) and build the engine there"
        )
    if missing:
        raise BadInput(f"format={format} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def image_size(imgsz: Any, stride: int) -> tuple[int, int]:
    """Height and width [pixels] from one number or two, each a multiple of the stride.

    Raises:
        BadInput: it is neither, or not a multiple.
    """
    sides = [imgsz] * 2 if isinstance(imgsz, int) else list(imgsz) if isinstance(imgsz, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 and s % stride == 0 for s in sides):
        raise BadInput(
            f"imgsz={imgsz} must be one multiple of the model's stride {stride}, or two (height and width), for "
            f"example imgsz={20 * stride}"
        )
    return sides[0], sides[1]
