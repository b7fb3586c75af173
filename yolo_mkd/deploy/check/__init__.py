"""Does an exported file do what its checkpoint does? In structure, in detections on real images, and in mAP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.deploy import exported_model as artefacts
from yolo_mkd.deploy.check import accuracy as scoring
from yolo_mkd.deploy.check import faults, structure
from yolo_mkd.deploy.check.accuracy import Accuracy
from yolo_mkd.deploy.check.matching import (
    CONF,
    LOWER_CONFS,
    MAX_DET,
    NMS_IOU,
    Detections,
    compare,
    detect,
    iou_matrix,
    judge,
)
from yolo_mkd.deploy.exported_model import ExportedModel
from yolo_mkd.deploy.images import find_images
from yolo_mkd.settings import BadInput

__all__ = [
    "CONF",
    "LOWER_CONFS",
    "MAX_DET",
    "NMS_IOU",
    "Accuracy",
    "Detections",
    "Parity",
    "check",
    "compare",
    "detect",
    "iou_matrix",
    "judge",
]


@dataclass(frozen=True)
class Parity:
    """The outcome of a check; printed, it is a short table."""

    passed: bool
    reason: str  # one line; empty when passed
    artefact: ExportedModel | None = None
    detections: Detections | None = None
    accuracy: Accuracy | None = None

    @property
    def head(self) -> str:
        """The file's head; empty when the file could not be read."""
        return self.artefact.head if self.artefact else ""

    def figures(self) -> dict[str, Any]:
        """The outcome for a report: `parity` with the detections, and `accuracy`."""
        level = dataclasses.asdict(self.detections) if self.detections else None
        return {
            "parity": {"passed": self.passed, "reason": self.reason, "detections": level},
            "accuracy": dataclasses.asdict(self.accuracy) if self.accuracy else None,
        }

    def __str__(self) -> str:
        lines = [f"check     {'passed' if self.passed else 'FAILED: ' + self.reason}"]
        if self.artefact:
            about = self.artefact
            size = "x".join(map(str, about.imgsz))
            lines.append(f"{'':10}{about.format} {about.precision}, head {about.head}, {size}")
        lines += [str(level) for level in (self.detections, self.accuracy) if level]
        return "\n".join(lines)


def check(
    model: str | Path,
    against: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    conf: float = CONF,
    accuracy: bool = True,
    opset: int | None = None,
    json: str | Path | None = None,
) -> Parity:
    """Verify an exported file against the checkpoint it came from: structure, detections, mAP.

    Args:
        model: the .onnx file, or the *_openvino_model or *_ncnn_model folder.
        against: the .pt checkpoint.
        images: a folder, a file or a list of files to detect on; they have no labels, so mAP is not measured.
        data: a data.yaml: detections are matched on at most 32 of its val images, evenly spread, and mAP is measured on
            all of them. Without both, the data set that the checkpoint was trained on.
        conf: score threshold of the matched detections; lowered step by step to 0.001 while neither side detects
            anything.
        accuracy: measure mAP of both too.
        opset: the highest ONNX opset that the file may need.
        json: a file to write the figures to.

    Returns:
        The figures, whether they pass, and if not the reason.

    Raises:
        BadInput: a file is missing or no detector, or there are no images to check on.
    """
    from yolo_mkd import host

    path = Path(model)
    kind = artefacts.format_of("model", path)
    if kind == "engine":
        raise BadInput(f"model={path} runs only where it was built: check it there, with run.py --check of its bundle")
    source = artefacts.existing("against", against, ".pt")
    trained = host.load_detector("against", str(source))
    if not 0 < conf < 1:
        raise BadInput(f"conf={conf} is no score threshold: give a number between 0 and 1, such as 0.25")
    trained_on = trained.args.get("data")
    pictures = find_images(images, data, trained_on)
    labelled = None if images is not None else str(data or trained_on)
    parity = verify(path, source, trained, pictures, labelled, conf, accuracy, opset)
    if json:
        about = dataclasses.asdict(parity.artefact) if parity.artefact else {}
        source_of = {"source": artefacts.identity(source)}
        report.write(json, "check", {**artefacts.identity(path), **about, **source_of, **parity.figures()})
    return parity


def verify(
    path: Path,
    source: Path,
    trained: Any,
    pictures: list[Path],
    data: str | None,
    conf: float,
    accuracy: bool,
    opset: int | None,
) -> Parity:
    """Check level by level; what a level finds impossible ends it.

    Args:
        path: the exported file.
        source: the checkpoint, and `trained` its model.
        trained: the checkpoint's model.
        pictures: the images to match detections on.
        data: the data set to measure mAP on.
        conf: score threshold.
        accuracy: measure mAP.
        opset: the highest that the file may need.
    """
    try:
        about = artefacts.read(path)
    except BadInput as error:  # the file is what is on trial, so this is a verdict
        return Parity(False, str(error))
    names, strides = dict(trained.names), [int(s) for s in trained.stride]
    if reason := structure.fault(about, names, strides) or structure.graph_fault(path, about, opset):
        return Parity(False, reason, about)

    lowest = min(conf, LOWER_CONFS[-1]) / 2  # one pass serves every threshold: in NMS no low score drops a high one
    expected, got = (detect(file, pictures, about, lowest) for file in (source, path))
    found = judge(expected, got, [p.name for p in pictures], conf, about.precision)
    measured = None
    if accuracy and found.file_detections:
        measured = scoring.compare(source, path, about, data, names)
    reason = found.reason or (measured.reason if measured else "")
    if reason and found.file_detections:
        reason = faults.name(source, pictures, about, expected, got, found, lowest) or reason
        if about.format == "onnx" and structure.quantised_decode(path):
            reason += f": {structure.QUANTISED_DECODE}"
    return Parity(not reason, reason, about, found, measured)
