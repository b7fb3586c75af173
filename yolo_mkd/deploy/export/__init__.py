"""Export a trained detector for the edge; the file appears only after it was verified against its checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.deploy import exported_model as artefacts
from yolo_mkd.deploy.check import CONF, Parity, structure, verify
from yolo_mkd.deploy.export import graph, int8, sensitivity, targets
from yolo_mkd.deploy.export.arguments import (
    PRECISIONS,
    VERIFIED,
    image_size,
    refuse_ours,
    refuse_pair,
    refuse_unverified,
    whole,
)
from yolo_mkd.deploy.exported_model import existing, identity
from yolo_mkd.deploy.images import find_images
from yolo_mkd.settings import BadInput, Failed

ENDINGS = {"onnx": ".onnx", "openvino": "_openvino_model", "ncnn": "_ncnn_model", "engine": ".engine"}
HEADS = {
    "one2many": "one2many (raw boxes, NMS outside the file)",
    "one2one": "one2one (final boxes, no NMS)",
}


class ExportFailed(Failed):
    """Ultralytics could not export, or the exported file does not detect what its checkpoint does."""


@dataclass(frozen=True)
class Order:
    """An export that was asked for, with every choice made."""

    source: Path
    format: str
    head: str
    target: targets.Target
    quantize: int | None
    size: tuple[int, int]  # height, width [pixels]
    passed_on: dict[str, Any]

    @property
    def file(self) -> Path:
        """Where the file goes: best.onnx, best_int8.onnx, best_openvino_model, ..."""
        precision = f"_{PRECISIONS[self.quantize]}" if self.quantize else ""
        return self.source.with_name(f"{self.source.stem}{precision}{ENDINGS[self.format]}")


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
    **ultralytics_export_args: Any,
) -> Path:
    """Export a trained detector beside its checkpoint, and verify structure, detections and mAP on real images.

    Args:
        model: the .pt checkpoint.
        format: onnx, openvino or ncnn, verified; engine where TensorRT is installed; any other of Ultralytics' goes
            through to it, and nothing verifies it.
        head: one2one (final boxes, no NMS) or one2many (NMS outside the file); by default one2one where the model has
            it and the target can build it.
        target: jp5, jp6, jp7 (JetPack) or generic: chooses the ONNX opset, and refuses what is known to fail there.
        quantize: 16 for FP16, 8 for INT8 (ONNX alone, with Q/DQ pairs); FP32 without.
        imgsz: image size [pixels], one number or height and width; by default that of the training.
        images: a folder, a file or a list of files to verify on; they have no labels, so mAP is not measured.
        data: a data.yaml to verify on its val split; by default that of the training.
        calibration: how many training images INT8 is calibrated on, at most.
        seed: of their choice.
        sensitivity: with quantize=8: also quantise one block at a time and list what each costs, on all val images or
            on this many.
        json: the report's file, by default best.export.json beside best.onnx.
        ultralytics_export_args: device, opset or simplify, as in `yolo export`; all of its for a format that passes
            through.

    Returns:
        The exported file or folder: best.onnx, best_fp16.onnx, best_int8.onnx, best_openvino_model, ...

    Raises:
        BadInput: an argument cannot work.
        ExportFailed: the export or its check failed; what was there before is left as it was.
    """
    from yolo_mkd import host

    source = existing("model", model, ".pt")
    if format not in VERIFIED:
        refuse_ours(format, target=target != "generic", head=head, images=images, json=json, sensitivity=sensitivity)
        given = {"quantize": quantize, "imgsz": imgsz, "data": data}
        return pass_through(source, format, {k: v for k, v in given.items() if v is not None} | ultralytics_export_args)
    refuse_unverified(ultralytics_export_args)
    chosen = targets.load(target)
    refuse_pair(source, format, chosen, quantize)
    if sensitivity and quantize != 8:
        raise BadInput("sensitivity= lists what INT8 costs block by block: give quantize=8 too")
    trained = host.load_detector("model", str(source))
    has_one2one = "one2one" in host.branches_of(host.head(trained))
    size = image_size(trained.args.get("imgsz", 640) if imgsz is None else imgsz, int(max(trained.stride)))
    passed_on = {**ultralytics_export_args}
    if format in {"onnx", "engine"}:
        passed_on["opset"] = targets.choose_opset(chosen, passed_on.pop("opset", None))
    order = Order(
        source, format, targets.choose_head(chosen, format, quantize, head, has_one2one), chosen, quantize,
        (size[0], size[1]), passed_on,
    )  # fmt: skip
    labelled = str(data or trained.args.get("data"))
    pictures = find_images(images, data, trained.args.get("data"))
    calibrated = None
    if quantize == 8:
        calibrated = int8.calibration_images(labelled, whole("calibration", calibration), whole("seed", seed, 0))

    with tempfile.TemporaryDirectory(prefix=".export-", dir=source.parent) as folder:
        file, scan = build(order, Path(folder), calibrated, sensitivity, labelled, trained)
        if format == "engine":
            parity = None
        else:
            opset = chosen.opset if format == "onnx" and chosen.name != "generic" else None
            parity = verify(
                file, source, trained, pictures, None if images is not None else labelled, CONF, True, opset
            )
            print(parity)
            if not parity.passed:
                raise ExportFailed(f"{order.file.name} was not written: {parity.reason}")
        figures = facts(order, file, parity, calibrated[1] if calibrated else None, scan)
        figures["parameters"] = sum(p.numel() for p in trained.parameters())
        place(file, order.file, Path(folder))
    beside = order.file.with_suffix("") if format in {"onnx", "engine"} else order.file
    written = report.write(json or beside.with_name(f"{beside.name}.export.json"), "export", figures)
    print(summary(order.file, figures), f"report    {written}", sep="\n")
    return order.file


def build(
    order: Order,
    folder: Path,
    calibrated: tuple[list[Path], dict[str, Any]] | None,
    scanned: bool | int,
    data: str,
    trained: Any,
) -> tuple[Path, dict[str, Any] | None]:
    """Make the file in a folder of its own, in the precision asked for, with its facts in its metadata.

    Args:
        order: the export.
        folder: an empty folder.
        calibrated: images to calibrate INT8 on, and their facts.
        scanned: make the table of sensitivity, on all val images or this many.
        data: the data set that the table is measured on.
        trained: the checkpoint's model, for the names of its blocks.

    Returns:
        The file, and the table.
    """
    copy = Path(shutil.copy(order.source, folder / order.source.name))
    arguments = {"format": order.format, "nms": False if order.head == "one2one" else None, **order.passed_on}
    if order.format != "onnx" and order.quantize:
        arguments["quantize"] = order.quantize
    made = run_ultralytics(copy, list(order.size), arguments)
    file, scan = folder / "made" / order.file.name, None
    file.parent.mkdir()
    if order.quantize == 16 and order.format == "onnx":
        graph.half(made, file)
    elif calibrated:
        int8.quantise(made, file, calibrated[0], order.size, order.target.quantized_weights)
        if scanned:
            count = None if scanned is True else whole("sensitivity", scanned)
            kinds = {i: type(layer).__name__ for i, layer in enumerate(trained.model)}
            scan = sensitivity.scan(made, calibrated[0], order.size, data, kinds, count)
            print(sensitivity.table(scan))
    else:
        os.replace(made, file)
    about = {
        "head": order.head,
        "precision": PRECISIONS[order.quantize],
        "target": order.target.name,
        "source_sha256": identity(order.source)["sha256"],
        "preprocess": graph.PREPROCESS,
        "calibration": calibrated[1] if calibrated else None,
    }
    if order.format != "engine":  # Ultralytics' header is all the metadata an engine has
        graph.stamp(file, about)
    return file, scan


def run_ultralytics(source: Path, size: list[int], arguments: dict[str, Any]) -> Path:
    """Export with Ultralytics, beside the checkpoint given; it installs nothing.

    Raises:
        ExportFailed: Ultralytics, PyTorch or ONNX gave up.
    """
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.scoring import no_installs

    try:
        with host.quiet(), no_installs():
            return Path(YOLO(str(source), task="detect").export(**{"format": "onnx", "imgsz": size, **arguments}))
    except (AssertionError, AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"Ultralytics could not export {source.name}: {host.one_line(error)[:200]}") from error


def pass_through(source: Path, format: str, arguments: dict[str, Any]) -> Path:
    """Hand a format that is not verified here to Ultralytics, and say so.

    Raises:
        BadInput: Ultralytics has no such format, or an argument is not one of its own.
    """
    from ultralytics import YOLO

    from yolo_mkd import host
    from yolo_mkd.host.scoring import formats

    if format not in formats():
        raise BadInput(
            f"format={format} is not known: verified are {', '.join(VERIFIED)}, others {', '.join(formats())}"
        )
    host.check_arguments(arguments)
    print(f"export    format={format} goes through to Ultralytics as it is: nothing here verifies the file")
    try:
        return Path(YOLO(str(source)).export(format=format, **arguments))
    except (AssertionError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ExportFailed(f"Ultralytics could not export {source.name}: {host.one_line(error)[:200]}") from error


def place(made: Path, target: Path, folder: Path) -> None:
    """Move a file or folder into its place; what stood there is gone only once the new one is there."""
    old = folder / "old"
    if target.is_dir():  # a folder cannot be replaced in one step
        os.replace(target, old)
    try:
        os.replace(made, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise


def facts(
    order: Order,
    file: Path,
    parity: Parity | None,
    calibration: dict[str, Any] | None,
    scan: dict[str, Any] | None,
) -> dict[str, Any]:
    """Describe an exported file for its report."""
    about = artefacts.read(file)
    return {
        **identity(file),
        "format": order.format,
        "head": about.head,
        "precision": about.precision,
        "target": order.target.name,
        "imgsz": list(about.imgsz),
        "output": list(about.output),
        "stride": about.stride,
        "opset": structure.opset(file) if order.format == "onnx" else None,
        "names": about.names,
        "source": identity(order.source),
        "calibration": calibration,
        "sensitivity": scan,
        **(parity.figures() if parity else {"parity": None, "accuracy": None}),
    }


def summary(target: Path, figures: dict[str, Any]) -> str:
    """Say what was made, for people."""
    height, width = figures["imgsz"]
    opset = f", opset {figures['opset']}" if figures["opset"] else ""
    shape = f", output {figures['output']}" if figures["output"] else ""
    lines = [
        f"exported  {target}  {figures['bytes'] / 1e6:.1f} MB, {figures['precision']}{opset}, "
        f"input 1x3x{height}x{width}, {len(figures['names'])} classes, target {figures['target']}",
        f"head      {HEADS[figures['head']]}{shape}",
    ]
    if found := figures["calibration"]:
        lines.append(
            f"calibrated on {found['images']} of {found['of']} {found['split']} images, seed {found['seed']}, "
            f"{found['left_out']} left out that val or test holds too"
        )
    if not figures["parity"]:
        lines.append("check     an engine is checked on its device: nothing was verified here")
    return "\n".join(lines)
