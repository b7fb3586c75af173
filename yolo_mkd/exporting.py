"""Export a trained detector through Ultralytics; the file appears only after its detections match the checkpoint's."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.artefact import describe, existing, identity, open_session
from yolo_mkd.images import find_images
from yolo_mkd.parity import check
from yolo_mkd.settings import BadInput, Failed, refuse_unknown

PASSED_ON = ("device", "nms", "opset", "simplify")  # Ultralytics' arguments that leave what is checked the same
UNCHECKED = {"batch", "dynamic", "end2end", "fraction", "half", "int8", "quantize", "workspace"}
HEADS = {
    "one2many": "one2many (raw boxes, NMS outside the file)",
    "one2one": "one2one (final boxes, no NMS)",
}


class ExportFailed(Failed):
    """Ultralytics could not export, or the exported file does not detect what its checkpoint does."""


def export(
    model: str | Path,
    format: str = "onnx",
    imgsz: int | Sequence[int] | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    json: str | Path | None = None,
    **ultralytics_export_args: Any,
) -> Path:
    """Export a trained detector to ONNX beside its checkpoint, and verify it on real images.

    Args:
        model: the .pt checkpoint.
        format: onnx.
        imgsz: image size [pixels], one number or height and width; by default that of the training.
        images: a folder, a file or a list of files to verify on.
        data: a data.yaml to verify on its val images, at most 32; by default that of the training.
        json: the report's file, by default best.export.json beside best.onnx.
        ultralytics_export_args: device, nms, opset or simplify, as in `yolo export`. nms=False exports the NMS-free
            one-to-one head where the model has one; by default the one-to-many head, which needs NMS outside.

    Returns:
        The exported file.

    Raises:
        BadInput: an argument cannot work.
        ExportFailed: the export or its check failed; a file that was there before is left as it was.
    """
    from yolo_mkd import host

    if format != "onnx":
        raise BadInput(f"format={format} is not verified yet: use yolo export model={model} format={format}")
    refuse_unverified(ultralytics_export_args)
    source = existing("model", model, ".pt")
    trained = host.load_detector("model", str(source))
    size = image_size(trained.args.get("imgsz", 640) if imgsz is None else imgsz, int(max(trained.stride)))
    pictures = find_images(images, data, trained.args.get("data"))

    target = source.with_suffix(".onnx")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=source.parent) as folder:
        file = run_ultralytics(Path(shutil.copy(source, folder)), size, ultralytics_export_args)
        parity = check(file, source, images=pictures)
        print(parity)
        if not parity.passed:
            raise ExportFailed(f"{target.name} was not written: {parity.reason}")
        figures = facts(file) | {"source": identity(source), "parity": dataclasses.asdict(parity)}
        os.replace(file, target)
    written = report.write(json or target.with_suffix(".export.json"), "export", figures)
    print(summary(target, figures), f"report    {written}", sep="\n")
    return target


def refuse_unverified(arguments: dict[str, Any]) -> None:
    """Refuse arguments that Ultralytics does not know, or that make a file the check does not cover yet."""
    for key, value in arguments.items():
        if key in UNCHECKED or (key, value) == ("nms", True):
            raise BadInput(
                f"{key}={value} makes a file that is not verified yet: use yolo export of Ultralytics for it"
            )
    refuse_unknown(arguments, (*PASSED_ON, "model", "format", "imgsz", "images", "data", "json"), "export")


def image_size(imgsz: Any, stride: int) -> list[int]:
    """Height and width [pixels] from one number or two, each a multiple of the stride."""
    sides = [imgsz] * 2 if isinstance(imgsz, int) else list(imgsz) if isinstance(imgsz, list | tuple) else []
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 and s % stride == 0 for s in sides):
        raise BadInput(
            f"imgsz={imgsz} is no multiple of the model's stride {stride}: give for example imgsz={20 * stride}"
        )
    return sides


def run_ultralytics(source: Path, size: list[int], arguments: dict[str, Any]) -> Path:
    """Export with Ultralytics, beside the checkpoint given.

    Raises:
        ExportFailed: Ultralytics, PyTorch or ONNX gave up.
    """
    from ultralytics import YOLO

    from yolo_mkd import host

    try:
        with host.quiet():
            return Path(YOLO(str(source), task="detect").export(format="onnx", imgsz=size, **arguments))
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"Ultralytics could not export {source.name}: {host.one_line(error)[:200]}") from error


def facts(file: Path) -> dict[str, Any]:
    """Describe an exported file for its report."""
    import onnx

    artefact = describe(open_session(file))
    graph = onnx.load(file)
    return {
        **identity(file),
        "format": "onnx",
        "head": artefact.head,
        "imgsz": list(artefact.imgsz),
        "output": list(artefact.output),
        "stride": artefact.stride,
        "opset": next(o.version for o in graph.opset_import if not o.domain),
        "names": artefact.names,
    }


def summary(target: Path, figures: dict[str, Any]) -> str:
    """Say what was made, for people."""
    height, width = figures["imgsz"]
    return (
        f"exported  {target}  {figures['bytes'] / 1e6:.1f} MB, opset {figures['opset']}, input 1x3x{height}x{width}, "
        f"{len(figures['names'])} classes\nhead      {HEADS[figures['head']]}, output {figures['output']}"
    )
