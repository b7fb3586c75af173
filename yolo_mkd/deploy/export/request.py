"""An export with all arguments validated and all choices made, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.check.accuracy import why_not_measurable
from yolo_mkd.deploy.export.arguments import PRECISIONS, image_size, refuse_unsupported, refuse_unverifiable
from yolo_mkd.deploy.export.int8 import CalibrationFacts, calibration_images
from yolo_mkd.deploy.export.targets import Target, choose_head, choose_opset, load_target
from yolo_mkd.deploy.images import find_images, refuse_channels
from yolo_mkd.settings import BadInput, number

ENDINGS = {
    "onnx": ".onnx",
    "openvino": "_openvino_model",
    "ncnn": "_ncnn_model",
    "litert": ".tflite",
    "engine": ".engine",
}


@dataclass(frozen=True)
class ExportArguments:
    """The arguments of `export` for a verified format, as given."""

    source: Path  # the checkpoint
    format: str
    head: str | None
    target: str
    quantize: int | None
    imgsz: int | Sequence[int] | None
    images: str | Path | Sequence[str | Path] | None
    data: str | Path | None
    calibration: int
    seed: int
    sensitivity: bool | int
    passed_on: dict[str, Any]  # Ultralytics' arguments


@dataclass(frozen=True)
class Calibration:
    """The images that INT8 is calibrated on, and their facts for the report."""

    pictures: list[Path]
    facts: CalibrationFacts


@dataclass(frozen=True)
class ExportRequest:
    """A validated export in a format that is verified."""

    source: Path  # the checkpoint
    trained: Any  # its model
    format: str
    head: str
    target: Target
    quantize: int | None
    size: tuple[int, int]  # height, width [pixels]
    passed_on: dict[str, Any]  # Ultralytics' arguments
    pictures: list[Path]  # images to match detections on
    data: str  # the data set for calibration and sensitivity
    labelled: str | None  # the data set to measure mAP on
    calibration: Calibration | None
    sensitivity: bool | int  # True: on all val images; a number: on this many

    @property
    def precision(self) -> str:
        """fp32, fp16 or int8."""
        return PRECISIONS[self.quantize]

    @property
    def file(self) -> Path:
        """The exported file: best.onnx, best_int8.onnx, best_openvino_model, ..."""
        precision = f"_{self.precision}" if self.quantize else ""
        return self.source.with_name(f"{self.source.stem}{precision}{ENDINGS[self.format]}")

    @property
    def report_file(self) -> Path:
        """The default file of the report: best.export.json beside best.onnx."""
        base = self.file.with_suffix("") if self.format in {"onnx", "engine"} else self.file
        return base.with_name(f"{base.name}.export.json")

    @property
    def highest_opset(self) -> int | None:
        """The highest opset that the file may need; None where the target does not limit it."""
        return self.target.opset if self.format == "onnx" and self.target.name != "generic" else None


def validate_request(given: ExportArguments) -> ExportRequest:
    """Validate the arguments of an export, and choose what they leave open.

    Raises:
        BadInput: an argument is invalid.
    """
    from yolo_mkd import host

    refuse_unverifiable(given.passed_on)
    host.check_values({"device": given.passed_on.get("device")})
    device = load_target(given.target)
    refuse_unsupported(given.source, given.format, device, given.quantize)
    if given.sensitivity and given.quantize != 8:
        raise BadInput("sensitivity= measures the loss of each block in INT8: use it with quantize=8")
    if given.sensitivity and not isinstance(given.sensitivity, bool):
        number("sensitivity", given.sensitivity, whole=True, low=1, example=100)
    trained = host.load_detector("model", str(given.source))
    refuse_channels("model", given.source, trained)
    learned = host.is_qat(trained)  # its INT8 ranges are in the checkpoint
    calibrates = given.quantize == 8 and not learned
    if learned and (given.quantize != 8 or given.sensitivity):
        raise BadInput(
            f"model={given.source} was trained with quantize=8, so its INT8 ranges are fixed: export it with "
            "quantize=8, without sensitivity="
        )
    trained_on = trained.args.get("data")
    size = image_size(trained.args.get("imgsz", 640) if given.imgsz is None else given.imgsz, int(max(trained.stride)))
    passed_on = dict(given.passed_on)
    if given.format in {"onnx", "engine"}:
        passed_on["opset"] = choose_opset(device, passed_on.get("opset"))
    has_one2one = "one2one" in host.branches_of(host.head(trained))
    chosen_head = choose_head(device, given.format, given.quantize, given.head, has_one2one)
    pictures = find_images(given.images, given.data, trained_on)
    data_set = str(given.data or trained_on)
    labelled = None if given.images is not None else data_set
    if given.quantize == 8:
        merged = bool(trained.args.get("single_cls"))
        if why := why_not_measurable(labelled, dict(trained.names), merged):
            raise BadInput(f"quantize=8 is judged by its mAP, which cannot be measured: {why}")
    return ExportRequest(
        source=given.source,
        trained=trained,
        format=given.format,
        head=chosen_head,
        target=device,
        quantize=given.quantize,
        size=size,
        passed_on=passed_on,
        pictures=pictures,
        data=data_set,
        labelled=labelled,
        calibration=choose_calibration(data_set, given.calibration, given.seed) if calibrates else None,
        sensitivity=given.sensitivity,
    )


def choose_calibration(data: str, count: int, seed: int) -> Calibration:
    """Validate the calibration's arguments, and choose its images.

    Raises:
        BadInput: an argument is invalid, or the train split has too few images.
    """
    number("calibration", count, whole=True, low=1, example=300)
    number("seed", seed, whole=True, low=0, example=0)
    return Calibration(*calibration_images(data, count, seed))
