"""Verification of an exported file against its checkpoint: structure, detections on real images, and mAP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from yolo_mkd import report
from yolo_mkd.deploy.check import faults, structure
from yolo_mkd.deploy.check.accuracy import Accuracy, compare_accuracy, measure_other_head
from yolo_mkd.deploy.check.matching import CONF, Detections, detect_in_files, judge_detections, lowest_conf
from yolo_mkd.deploy.check.thresholds import ScoreShift, score_shift
from yolo_mkd.deploy.exported_model import (
    ExportedModel,
    existing_file,
    file_identity,
    format_of,
    read_exported_model,
)
from yolo_mkd.deploy.images import find_images, refuse_channels
from yolo_mkd.settings import BadInput, file_path, number

__all__ = ["CONF", "CheckFigures", "CheckRequest", "Parity", "check", "verify"]


class ParityFigures(TypedDict):
    """The verdict of a check, with its matched detections."""

    passed: bool
    reason: str
    detections: dict[str, Any] | None  # Detections


class CheckFigures(TypedDict):
    """The part of an export or check report with the outcome of the check."""

    parity: ParityFigures | None
    accuracy: dict[str, Any] | None  # Accuracy
    score_shift: dict[str, Any] | None  # ScoreShift; None where scores did not move in one direction


@dataclass(frozen=True)
class Parity:
    """The outcome of a check; printed, it is a short table."""

    passed: bool
    reason: str  # one line; empty when passed
    model: ExportedModel | None = None
    detections: Detections | None = None
    accuracy: Accuracy | None = None
    shift: ScoreShift | None = None

    @property
    def head(self) -> str:
        """The file's head; empty when the file could not be read."""
        return self.model.head if self.model else ""

    def figures(self) -> CheckFigures:
        """The outcome for a report: `parity` with the detections, `accuracy` and `score_shift`."""
        detections = dataclasses.asdict(self.detections) if self.detections else None
        return {
            "parity": {"passed": self.passed, "reason": self.reason, "detections": detections},
            "accuracy": dataclasses.asdict(self.accuracy) if self.accuracy else None,
            "score_shift": dataclasses.asdict(self.shift) if self.shift else None,
        }

    def __str__(self) -> str:
        lines = [f"check     {'passed' if self.passed else 'FAILED: ' + self.reason}"]
        if self.model:
            size = "x".join(map(str, self.model.imgsz))
            lines.append(f"{'':10}{self.model.format} {self.model.precision}, head {self.model.head}, {size}")
        lines += [str(level) for level in (self.detections, self.accuracy) if level]
        if self.shift and self.passed:  # a failure names it in its reason
            lines.append(f"WARNING   {self.shift}")
        return "\n".join(lines)


@dataclass(frozen=True)
class CheckRequest:
    """A validated check."""

    source: Path  # the checkpoint
    trained: Any  # its model
    pictures: list[Path]  # images to match detections on
    data: str | None  # data set to measure mAP on
    conf: float = CONF  # score threshold of the matched detections
    accuracy: bool = True  # measure mAP
    opset: int | None = None  # the highest ONNX opset that the file may need
    other_head: bool = False  # measure the checkpoint's other head too


def check(
    model: str | Path,
    against: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    conf: float = CONF,
    accuracy: bool = True,
    opset: int | None = None,
    json: str | Path | None = None,
    trust: bool = False,
) -> Parity:
    """Verify an exported file against the checkpoint it was made from: structure, detections, mAP.

    Args:
        model: the .onnx or .tflite file, or the *_openvino_model or *_ncnn_model folder.
        against: the .pt checkpoint.
        images: a folder, a file or a list of files to detect on; they have no labels, so mAP is not measured.
        data: a data.yaml: detections are matched on at most 32 evenly spaced val images, and mAP is measured on all of
            them. Without both, the data set that the checkpoint was trained on.
        conf: score threshold of the matched detections; lowered step by step to 0.001 while neither side detects
            anything.
        accuracy: measure mAP of both, too; without it an INT8 file does not pass.
        opset: the highest ONNX opset that the file may need.
        json: a file to write the figures to.
        trust: load a checkpoint that holds code beside weights; loading it can run anything.

    Returns:
        The figures, whether they pass, and if not the reason.

    Raises:
        BadInput: a file is missing or not a detector, or there are no images to check on.
    """
    from yolo_mkd import host

    report.check_writable("json", json)
    path = file_path("model", model, "best.onnx")
    if format_of("model", path) == "engine":
        raise BadInput(
            f"model={path} runs only on the device that built it: check it there, with run.py --check of its bundle"
        )
    source = existing_file("against", against, ".pt")
    with host.trusting(trust):
        trained = host.load_detector("against", str(source))
        refuse_channels("against", source, trained)
        number("conf", conf, above=0, below=1, example=0.25)
        trained_on = trained.args.get("data")
        pictures = find_images(images, data, trained_on)
        labelled = None if images is not None else str(data or trained_on)
        parity = verify(path, CheckRequest(source, trained, pictures, labelled, conf, accuracy, opset))
    if json:
        metadata = dataclasses.asdict(parity.model) if parity.model else {}
        figures = {**file_identity(path), **metadata, "source": file_identity(source), **parity.figures()}
        report.write(json, "check", figures)
    return parity


def verify(path: Path, request: CheckRequest) -> Parity:
    """Check an exported file level by level, and end at the first level that excludes the next.

    Args:
        path: the exported file.
        request: what to check it against.
    """
    try:
        model = read_exported_model(path)
    except BadInput as error:  # an unreadable file is the outcome of the check, not an error of the user's
        return Parity(False, str(error))
    names, strides = dict(request.trained.names), [int(s) for s in request.trained.stride]
    mismatch = structure.metadata_mismatch(model, names, strides)
    mismatch = mismatch or structure.graph_mismatch(path, model, request.opset)
    if mismatch:
        return Parity(False, mismatch, model)

    lowest = lowest_conf(request.conf)
    expected = detect_in_files(request.source, request.pictures, model, lowest)
    got = detect_in_files(path, request.pictures, model, lowest)
    merged = bool(request.trained.args.get("single_cls"))
    found = judge_detections(expected, got, [p.name for p in request.pictures], request.conf, model.precision)
    if not found.file_detections:
        return Parity(not found.reason, found.reason, model, found)
    measured = compare_accuracy(request.source, path, model, request.data, names, merged) if request.accuracy else None
    shift = score_shift(expected, got)
    reason = found.reason or (measured.reason if measured else "")
    if reason:
        reason = faults.diagnose(request.source, request.pictures, model, expected, got, found) or reason
        if model.format == "onnx" and structure.quantised_decode(path):
            reason += f": {structure.QUANTISED_DECODE}"
        elif shift:
            reason += f": {shift}"
    elif model.precision == "int8":
        reason = int8_not_measured(measured)
    if request.other_head and measured and not reason:
        measured = measure_other_head(measured, request.source, model, request.trained, request.data, merged)
    return Parity(not reason, reason, model, found, measured, shift)


def int8_not_measured(measured: Accuracy | None) -> str:
    """Why an INT8 file is not verified although no fault was found, in one line; empty where its mAP was measured."""
    if measured is not None and measured.verdict != "not measured":
        return ""
    note = measured.note if measured else "accuracy=false"
    return f"INT8 is judged by its mAP, which was not measured: {note}"
