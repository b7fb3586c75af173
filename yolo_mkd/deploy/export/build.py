"""Making of an exported file: Ultralytics' exporter, then our own precision and metadata."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.export import graph, process
from yolo_mkd.deploy.export.arguments import VERIFIED
from yolo_mkd.deploy.export.int8 import quantise_to_int8
from yolo_mkd.deploy.export.process import run_export
from yolo_mkd.deploy.export.request import ExportRequest
from yolo_mkd.deploy.export.sensitivity import Sensitivity, measure_sensitivity, sensitivity_text
from yolo_mkd.deploy.exported_model import file_identity
from yolo_mkd.settings import BadInput, Failed

SEPARATE = ("ncnn", "litert", "engine")  # formats whose converters can hang or crash, or change PyTorch


class ExportFailed(Failed):
    """Ultralytics could not export, or the exported file does not detect what its checkpoint does."""


def build_file(request: ExportRequest, folder: Path) -> tuple[Path, Sensitivity | None]:
    """Make the file in a temporary folder, in the requested precision, with its facts in its metadata.

    Args:
        request: the export.
        folder: an empty folder.

    Returns:
        The file, and the sensitivity of its blocks where it was requested.
    """
    copy = Path(shutil.copy(request.source, folder / request.source.name))
    arguments = {"format": request.format, "nms": False if request.head == "one2one" else None, **request.passed_on}
    if request.format != "onnx" and request.quantize:
        arguments["quantize"] = request.quantize
    made = run_ultralytics(copy, list(request.size), arguments)
    file, sensitivity = folder / "made" / request.file.name, None
    file.parent.mkdir()
    if request.quantize == 16 and request.format == "onnx":
        graph.convert_to_fp16(made, file)
    elif request.calibration:
        pictures = request.calibration.pictures
        quantise_to_int8(made, file, pictures, request.size, request.target.quantized_weights)
        if request.sensitivity:
            kinds = {i: type(layer).__name__ for i, layer in enumerate(request.trained.model)}
            merged = bool(request.trained.args.get("single_cls"))
            count = None if request.sensitivity is True else request.sensitivity
            sensitivity = measure_sensitivity(made, pictures, request.size, request.data, kinds, count, merged)
            print(sensitivity_text(sensitivity))
    else:
        os.replace(made, file)
    if request.format != "engine":  # an engine has no metadata but Ultralytics' header
        graph.write_metadata(file, metadata_of(request))
    return file, sensitivity


def metadata_of(request: ExportRequest) -> dict[str, Any]:
    """The facts that yolo-mkd adds to a file's metadata."""
    return {
        "head": request.head,
        "precision": request.precision,
        "target": request.target.name,
        "source_sha256": file_identity(request.source)["sha256"],
        "preprocess": graph.PREPROCESS,
        "calibration": request.calibration.facts if request.calibration else None,
    }


def run_ultralytics(source: Path, size: list[int], arguments: dict[str, Any]) -> Path:
    """Export with Ultralytics, beside the given checkpoint, without installing packages.

    Raises:
        ExportFailed: Ultralytics, PyTorch or ONNX failed.
    """
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.trust import no_installs

    arguments = {"format": "onnx", "imgsz": size, **arguments}
    try:
        if arguments["format"] in SEPARATE:
            return run_export(source, "detect", arguments, quiet=True, limit_s=process.LIMIT_S)
        with host.quiet(), no_installs():
            return Path(YOLO(str(source), task="detect").export(**arguments))
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"Ultralytics could not export {source.name}: {host.one_line(error)[:200]}") from error


def export_unverified(source: Path, format: str, arguments: dict[str, Any]) -> Path:
    """Export with Ultralytics in a format that is not verified here, and print that it is not.

    Raises:
        BadInput: Ultralytics does not have the format, or an argument.
        ExportFailed: the export failed.
    """
    from yolo_mkd import host
    from yolo_mkd.host.scoring import formats

    if format not in formats():
        raise BadInput(
            f"format={format} is not known: verified are {', '.join(VERIFIED)}, others {', '.join(formats())}"
        )
    host.check_arguments(arguments)
    host.refuse_code("model", source)
    print(f"export    format={format} is exported by Ultralytics; yolo-mkd does not verify the file")
    try:
        arguments = {"format": format, **arguments}
        return run_export(source.resolve(), None, arguments, quiet=False, limit_s=process.LIMIT_S)
    except (OSError, RuntimeError) as error:
        raise ExportFailed(f"Ultralytics could not export {source.name}: {host.one_line(error)[:200]}") from error
