"""Ultralytics' validator, letterbox and exporter for the export and its checks, as of version 8.4.190."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.engine.exporter import export_formats
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.metrics import ap_per_class, smooth
from ultralytics.utils.ops import scale_boxes

from yolo_mkd.host.files import quiet
from yolo_mkd.host.trust import no_installs

PROGRESS_EVERY_S = 10.0
F1_SMOOTHING = 0.1  # of Ultralytics' own best-F1 threshold: a moving average over a tenth of the curve


class Curves(TypedDict):
    """Recall and F1 at IoU 0.5 against the score threshold, as Ultralytics' validator draws them."""

    conf: NDArray[np.float64]  # thresholds, 1000
    classes: list[int]  # the rows of the others
    recall: NDArray[np.float64]  # classes x 1000
    f1: NDArray[np.float64]  # classes x 1000, smoothed


class Scorer(DetectionValidator):
    """Ultralytics' detection validator at any height and width, which also computes the AP of each image.

    Attributes:
        size: height and width [pixels].
        by_image: AP50-95 of each image that has labels, by its file.
    """

    def __init__(self, *args: Any, size: tuple[int, int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.size = size
        self.by_image: dict[str, float] = {}

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Letterbox to the exported file's size; for a checkpoint Ultralytics would use a square."""
        self.args.imgsz = list(self.size)
        return super().build_dataset(img_path, mode, batch)

    def get_stats(self) -> dict[str, Any]:
        """Compute AP50-95 of each image that has labels, over its own classes, before the statistics are pooled."""
        stats = self.metrics.stats
        columns = zip(*(stats[key] for key in ("tp", "conf", "pred_cls", "target_cls")), strict=True)
        for file, (tp, conf, found, target) in zip(self.dataloader.dataset.im_files, columns, strict=True):
            if len(target):
                self.by_image[file] = float(ap_per_class(tp, conf, found, target)[5].mean())
        self.metrics.by_image = self.by_image
        return super().get_stats()


def score(
    path: Path,
    data: str,
    size: tuple[int, int],
    one2one: bool,
    nms_iou: float,
    max_det: int,
    tell: Callable[[int, int], None],
    single_cls: bool = False,
) -> dict[str, Any]:
    """Validate a checkpoint or an exported file on a data set's val split: one image at a time, full letterbox.

    Args:
        path: the .pt or the exported file.
        data: the data set's YAML.
        size: height and width [pixels].
        one2one: use the NMS-free head of a checkpoint with two heads.
        nms_iou: threshold of NMS.
        max_det: largest number of detections in an image.
        tell: called every 10 s with the number of images done and of all images.
        single_cls: count all classes as one.

    Returns:
        map50_95, map50, `classes` {index: AP50-95} of those that have labels, `images` {file: AP50-95}, `curves` by
        score threshold (None where nothing was detected).
    """
    reported_at = time.monotonic()

    def report_progress(validator: Any) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at > PROGRESS_EVERY_S:
            reported_at = time.monotonic()
            tell(validator.batch_i + 1, len(validator.dataloader))

    with quiet(), exact_openvino(), no_installs(), tempfile.TemporaryDirectory() as folder:
        yolo = YOLO(str(path), task="detect")
        yolo.add_callback("on_val_batch_end", report_progress)
        protocol = {"rect": False, "batch": 1, "conf": 0.001, "iou": nms_iou, "max_det": max_det, "workers": 0}
        nothing_else = {"plots": False, "verbose": False, "save_json": False, "val": False}
        metrics = yolo.val(
            validator=functools.partial(Scorer, size=size),
            data=data,
            imgsz=max(size),
            nms=False if one2one else None,
            device="cpu",
            project=folder,
            name="val",
            exist_ok=True,
            single_cls=single_cls,
            **protocol,
            **nothing_else,
        )
    box = metrics.box
    return {
        "map50_95": float(box.map),
        "map50": float(box.map50),
        "classes": {int(c): float(ap) for c, ap in zip(box.ap_class_index, box.ap, strict=True)},
        "images": metrics.by_image,
        "curves": curves_of(box),
    }


def curves_of(box: Any) -> Curves | None:
    """The curves of a validation's box metrics; None where nothing was detected."""
    if not len(box.px):
        return None
    return {
        "conf": np.asarray(box.px),
        "classes": [int(c) for c in box.ap_class_index],
        "recall": np.asarray(box.r_curve),
        "f1": np.stack([smooth(row, F1_SMOOTHING) for row in box.f1_curve]),
    }


def only_classes(yolo: YOLO, kept: Iterable[int]) -> type[DetectionValidator]:
    """The validator class of a model's task, in which the model detects some of its classes only.

    Args:
        yolo: the model.
        kept: the indices of these classes.
    """
    base: type[DetectionValidator] = yolo.task_map[yolo.task]["validator"]
    wanted = sorted(set(kept))

    class Selected(base):
        def postprocess(self, preds: Any) -> list[dict[str, Any]]:
            """Drop the detections of other classes."""
            found = []
            for image in super().postprocess(preds):
                rows = torch.isin(image["cls"], torch.tensor(wanted).to(image["cls"]))
                found.append({key: value[rows] for key, value in image.items()})
            return found

    return Selected


def letterbox(
    picture: NDArray[np.uint8], size: tuple[int, int], grey: int = 114, centred: bool = True, stretched: bool = False
) -> NDArray[np.uint8]:
    """Ultralytics' letterbox of a picture, H W 3, to the height and width given.

    Args:
        picture: H W 3.
        size: height and width [pixels].
        grey: value of the padding.
        centred: pad both sides equally; False imitates a faulty letterbox, to compare with.
        stretched: ignore the aspect ratio; True imitates a faulty letterbox.
    """
    box = LetterBox(size, auto=False, scale_fill=stretched, center=centred, padding_value=grey)
    return np.asarray(box(image=picture), dtype=np.uint8)


def out_of_letterbox(boxes: NDArray[np.float64], size: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Boxes N 4 of a letterbox of `size`, in pixels of the picture of `shape`, as in Ultralytics' predict."""
    return np.asarray(scale_boxes(size, boxes.copy(), shape), dtype=np.float64)


def formats() -> tuple[str, ...]:
    """The formats that Ultralytics exports to."""
    return tuple(export_formats()["Argument"][1:])


@contextlib.contextmanager
def exact_openvino() -> Iterator[None]:
    """Make OpenVINO compute in float32; its default on processors with bfloat16 is bfloat16, which changes scores."""
    try:
        import openvino
    except ImportError:  # not installed, so nothing runs on it
        yield
        return
    before = openvino.Core.compile_model

    def exactly(core: Any, *args: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return before(core, *args, config={**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **kwargs)

    openvino.Core.compile_model = exactly
    try:
        yield
    finally:
        openvino.Core.compile_model = before
