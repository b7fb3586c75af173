"""What a device's TensorRT reads: the ONNX opset, and pairs of head and precision known to fail. From cfg/targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from yolo_mkd.settings import BadInput, shipped

HEADS = ("one2one", "one2many")


@dataclass(frozen=True)
class Target:
    """A device generation, as its file in cfg/targets describes it."""

    name: str
    about: str
    opset: int  # the highest that is documented to work
    quantized_weights: bool  # an INT8 file may hold INT8 weights, not float weights with a Q/DQ pair
    refused: list[dict[str, Any]]  # quantize, head, reason, instead


def load(name: str) -> Target:
    """Read a target by its name.

    Raises:
        BadInput: there is none of that name.
    """
    folder = shipped("cfg") / "targets"
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in known:
        raise BadInput(f"target={name} is not known: choose from {', '.join(known)}")
    return Target(name, **yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))


def choose_opset(target: Target, asked: int | None) -> int:
    """The opset to export with: the target's own, or a lower one that was asked for.

    Raises:
        BadInput: what was asked for is above the target's.
    """
    if asked is None:
        return target.opset
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise BadInput(
            f"opset={asked} is no whole number: leave it out for {target.opset}, that of target={target.name}"
        )
    if asked > target.opset and target.name != "generic":
        raise BadInput(
            f"opset={asked} is above what target={target.name} reads ({target.about}): use opset={target.opset}"
        )
    return asked


def choose_head(target: Target, format: str, quantize: int | None, asked: str | None, has_one2one: bool) -> str:
    """The head to export: the one asked for, or the NMS-free one where model, format and target allow it.

    Args:
        target: the device.
        format: of the exported file.
        quantize: 16, 8 or None.
        asked: one2one, one2many or None.
        has_one2one: the model has an NMS-free head.

    Raises:
        BadInput: the head asked for does not exist, or fails on the target; the message says why.
    """
    if asked not in {None, *HEADS}:
        raise BadInput(f"head={asked} is no head: choose from {', '.join(HEADS)}")
    if asked == "one2many":
        return asked
    reason = instead = ""
    if not has_one2one:
        reason, instead = "the model has no NMS-free head", "head=one2many"
    elif format == "ncnn":
        reason, instead = "NCNN has no TopK for the NMS-free head", "head=one2many"
    for pair in target.refused:
        if (pair["quantize"], pair["head"]) == (quantize, "one2one"):
            reason, instead = pair["reason"], pair["instead"]
    if reason and asked:
        raise BadInput(f"head={asked} cannot work: {reason}: use {instead}")
    if reason and has_one2one:
        print(f"head      one2many: {reason}")
    return "one2many" if reason else "one2one"
