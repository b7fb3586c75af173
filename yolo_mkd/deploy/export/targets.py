"""Device generations of cfg/targets: the ONNX opset their TensorRT supports, and combinations known to fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import yaml

from yolo_mkd.settings import BadInput, number, shipped

HEADS = ("one2one", "one2many")


class RefusedPair(TypedDict):
    """A combination of precision and head that fails on a device."""

    quantize: int | None
    head: str
    reason: str
    instead: str


@dataclass(frozen=True)
class Target:
    """A device generation, as its file in cfg/targets describes it."""

    name: str
    about: str
    opset: int  # the highest that is documented to work
    quantized_weights: bool  # an INT8 file may contain INT8 weights, instead of float weights with a Q/DQ pair
    refused: list[RefusedPair]


def load_target(name: str) -> Target:
    """Read a target by its name.

    Raises:
        BadInput: the name is unknown.
    """
    folder = shipped("cfg") / "targets"
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise BadInput(f"target={name} is not known: choose from {', '.join(known)}")
    return Target(name, **yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))


def choose_opset(target: Target, requested: Any) -> int:
    """The opset to export with: the target's own, or the requested one where the target supports it.

    Raises:
        BadInput: the requested one is not a whole number, or above the target's.
    """
    if requested is None:
        return target.opset
    number("opset", requested, whole=True, low=1, example=target.opset)
    if requested > target.opset and target.name != "generic":
        raise BadInput(
            f"opset={requested} is above what target={target.name} supports ({target.about}): use opset={target.opset}"
        )
    return int(requested)


def choose_head(target: Target, format: str, quantize: int | None, requested: str | None, has_one2one: bool) -> str:
    """The head to export: the requested one, or the NMS-free one where model, format and target support it.

    Args:
        target: the device.
        format: of the exported file.
        quantize: 16, 8 or None.
        requested: one2one, one2many or None.
        has_one2one: the model has an NMS-free head.

    Raises:
        BadInput: the requested head does not exist, or fails on the target; the message gives the reason.
    """
    if requested not in (None, *HEADS):
        raise BadInput(f"head={requested} is not known: choose from {', '.join(HEADS)}")
    if requested == "one2many":
        return requested
    reason = instead = ""
    if not has_one2one:
        reason, instead = "the model has no NMS-free head", "head=one2many"
    elif format == "ncnn":
        reason, instead = "NCNN does not support TopK, which the NMS-free head needs", "head=one2many"
    for pair in target.refused:
        if (pair["quantize"], pair["head"]) == (quantize, "one2one"):
            reason, instead = pair["reason"], pair["instead"]
    if reason and requested:
        raise BadInput(f"head={requested} cannot be exported: {reason}: use {instead}")
    if reason and has_one2one:
        print(f"head      one2many: {reason}")
    return "one2many" if reason else "one2one"
