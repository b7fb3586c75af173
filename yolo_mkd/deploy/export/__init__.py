"""Export of a trained detector for a device; the file appears only after it was verified against its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.deploy.check import CheckFigures, CheckRequest, Parity, verify
from yolo_mkd.deploy.check.structure import required_opset
from yolo_mkd.deploy.export.arguments import VERIFIED, refuse_for_unverified_format
from yolo_mkd.deploy.export.build import ExportFailed, build_file, export_unverified
from yolo_mkd.deploy.export.int8 import CalibrationFacts
from yolo_mkd.deploy.export.request import ExportArguments, ExportRequest, validate_request
from yolo_mkd.deploy.export.sensitivity import Sensitivity
from yolo_mkd.deploy.exported_model import FileIdentity, existing_file, file_identity, read_exported_model
from yolo_mkd.locking import workspace
from yolo_mkd.settings import BadInput
from yolo_mkd.settings.errors import short

__all__ = ["ExportFailed", "ExportReport", "export"]

WORKSPACE = ".export-"  # begins the name of the temporary folder, before that of the file
REPLACED = "old"  # in it
HEAD_TEXTS = {
    "one2many": "one2many (raw boxes, NMS outside the file)",
    "one2one": "one2one (final boxes, no NMS)",
}


class ExportReport(FileIdentity, CheckFigures):
    """best.export.json, without the schema, versions and machine that every report has."""

    format: str
    head: str
    precision: str
    target: str
    imgsz: list[int]
    output: list[int]
    stride: int
    opset: int | None
    names: dict[int, str]
    source: FileIdentity
    calibration: CalibrationFacts | None
    sensitivity: Sensitivity | None
    parameters: int


def export(
    model: str | Path,
    format: str = "onnx",
    head: str | None = None,
    target: str = "generic",
    quantize: int | None = None,
    imgsz: int | Sequence[int] | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    calibration: int = 300,
    seed: int = 0,
    sensitivity: bool | int = False,
    json: str | Path | None = None,
    trust: bool = False,
    **ultralytics_export_args: Any,
) -> Path:
    """Export a trained detector beside its checkpoint, and verify structure, detections and mAP on real images.

    Args:
        model: the .pt checkpoint.
        format: onnx, openvino, ncnn or litert, verified; engine where TensorRT is installed; any other format of
            Ultralytics is exported by it and not verified.
        head: one2one (final boxes, no NMS) or one2many (NMS outside the file); by default one2one where the model has
            it and the target supports it.
        target: jp5, jp6, jp7 (JetPack) or generic: chooses the ONNX opset, and rejects what is known to fail there.
        quantize: 16 for FP16, 8 for INT8 (ONNX only, with Q/DQ pairs); FP32 without.
        imgsz: image size [pixels], one number or height and width; by default that of the training.
        images: a folder, a file or a list of files to verify on; they have no labels, so mAP is not measured.
        data: a data.yaml to verify on its val split; by default that of the training.
        calibration: the largest number of training images to calibrate INT8 on.
        seed: for the choice of these images.
        sensitivity: with quantize=8: also quantise one block at a time and list the loss of each, on all val images or
            on this many.
        json: the report's file, by default best.export.json beside best.onnx.
        trust: load a checkpoint that holds code beside weights; loading it can run anything.
        ultralytics_export_args: device, opset or simplify, as in `yolo export`; all its arguments for a format that is
            not verified.

    Returns:
        The exported file or folder: best.onnx, best_fp16.onnx, best_int8.onnx, best_openvino_model, ...

    Raises:
        BadInput: an argument is invalid.
        ExportFailed: the export or its check failed; existing files are unchanged.
    """
    from yolo_mkd import host

    source = existing_file("model", model, ".pt")
    with host.trusting(trust):
        if not isinstance(format, str):
            raise BadInput(f"format={short(format)} must be the name of a format, for example format=onnx")
        if format not in VERIFIED:
            refuse_for_unverified_format(
                format, target=target != "generic", head=head, images=images, json=json, sensitivity=sensitivity
            )
            given = {"quantize": quantize, "imgsz": imgsz, "data": data}
            arguments = {key: value for key, value in given.items() if value is not None} | ultralytics_export_args
            return export_unverified(source, format, arguments)
        request = validate_request(
            ExportArguments(
                source=source,
                format=format,
                head=head,
                target=target,
                quantize=quantize,
                imgsz=imgsz,
                images=images,
                data=data,
                calibration=calibration,
                seed=seed,
                sensitivity=sensitivity,
                passed_on=ultralytics_export_args,
            )
        )
        report.check_writable("model", request.report_file)
        report.check_writable("json", json)
        figures = export_verified(request)
        written = report.write(json or request.report_file, "export", dict(figures))
        print(summary_text(request.file, figures), f"report    {written}", sep="\n")
        return request.file


def export_verified(request: ExportRequest) -> ExportReport:
    """Build the file in a temporary folder, verify it, and move it to its place.

    Raises:
        ExportFailed: the export or its check failed; existing files are unchanged.
    """
    with workspace(request.source.parent / f"{WORKSPACE}{request.file.name}", rescue=restore_replaced) as folder:
        file, sensitivity = build_file(request, folder)
        parity = None
        if request.format != "engine":
            against = CheckRequest(
                source=request.source,
                trained=request.trained,
                pictures=request.pictures,
                data=request.labelled,
                opset=request.highest_opset,
                other_head=True,
            )
            parity = verify(file, against)
            print(parity)
            if not parity.passed:
                raise ExportFailed(f"{request.file.name} was not written: {parity.reason}")
        figures = export_report(request, file, parity, sensitivity)
        move_into_place(file, request.file, folder)
    return figures


def move_into_place(made: Path, target: Path, folder: Path) -> None:
    """Move a file or folder to its place; what it replaces is removed only once the new one is there.

    Args:
        made: the new file or folder.
        target: its place.
        folder: a temporary folder for what is replaced.
    """
    old = folder / REPLACED
    if target.is_dir():  # a folder cannot be replaced in one step
        os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


def restore_replaced(folder: Path) -> None:
    """Put back what a killed run had moved out of the way and not yet replaced.

    Args:
        folder: the temporary folder of that run.
    """
    target = folder.with_name(folder.name.removeprefix(WORKSPACE))
    if (folder / REPLACED).exists() and not target.exists():
        os.replace(folder / REPLACED, target)


def export_report(
    request: ExportRequest, file: Path, parity: Parity | None, sensitivity: Sensitivity | None
) -> ExportReport:
    """The facts of an exported file, for its report."""
    model = read_exported_model(file)
    outcome: CheckFigures = parity.figures() if parity else {"parity": None, "accuracy": None, "score_shift": None}
    return {
        **file_identity(file),
        "format": request.format,
        "head": model.head,
        "precision": model.precision,
        "target": request.target.name,
        "imgsz": list(model.imgsz),
        "output": list(model.output),
        "stride": model.stride,
        "opset": required_opset(file) if request.format == "onnx" else None,
        "names": model.names,
        "source": file_identity(request.source),
        "calibration": request.calibration.facts if request.calibration else None,
        "sensitivity": sensitivity,
        **outcome,
        "parameters": sum(p.numel() for p in request.trained.parameters()),
    }


def summary_text(target: Path, figures: ExportReport) -> str:
    """A summary of an export, as text."""
    height, width = figures["imgsz"]
    opset = f", opset {figures['opset']}" if figures["opset"] else ""
    shape = f", output {figures['output']}" if figures["output"] else ""
    lines = [
        f"exported  {target}  {figures['bytes'] / 1e6:.1f} MB, {figures['precision']}{opset}, "
        f"input 1x3x{height}x{width}, {len(figures['names'])} classes, target {figures['target']}",
        f"head      {HEAD_TEXTS[figures['head']]}{shape}",
    ]
    accuracy = figures["accuracy"] or {}
    if other := accuracy.get("other_head"):
        lines.append(
            f"{'':10}of the checkpoint's heads {figures['head']} has mAP50-95 {accuracy['checkpoint_map50_95']:.4f}, "
            f"{other} {accuracy['other_head_map50_95']:.4f} (head={other} exports it)"
        )
    if found := figures["calibration"]:
        lines.append(
            f"calibrated on {found['images']} of {found['of']} {found['split']} images, seed {found['seed']}, "
            f"without {found['left_out']} that are val or test images too"
        )
    if not figures["parity"]:
        lines.append("check     not verified: an engine is checked on its device")
    return "\n".join(lines)
