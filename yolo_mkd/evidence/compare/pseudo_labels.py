"""Hard pseudo-labels, the usual way to use unlabelled images and so the control for distillation on them.

The teacher labels the images once, at the confidence at which its F1 on the validation images is best, and stock
Ultralytics trains on these boxes like on any labels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd import host, report
from yolo_mkd.cache.unlabelled import listed
from yolo_mkd.settings import BadInput


@dataclass(frozen=True)
class PseudoLabels:
    """A data set of the labelled images and of unlabelled images with the teacher's boxes.

    Attributes:
        file: its YAML file; val and test are those of the labelled set.
        confidence: lowest confidence of the teacher's boxes.
        images: number of images with pseudo-labels, those without a box included.
        boxes: number of boxes on them.
    """

    file: Path
    confidence: float
    images: int
    boxes: int


def label_images(
    teacher: str | Path, data: dict[str, Any], images: Sequence[Path], folder: Path, imgsz: int, device: str = ""
) -> PseudoLabels:
    """Label images with a teacher.

    Args:
        teacher: its .pt file.
        data: the labelled data set, as `host.check_data` returns it.
        images: without labels.
        folder: of the new data set; images are linked, or copied where links are not possible.
        imgsz: image size of the teacher's input [pixels].
        device: as Ultralytics takes it.

    Raises:
        BadInput: the teacher has other classes than the data, or no detection on the validation images.
    """
    from ultralytics import YOLO

    model = YOLO(str(teacher))
    if {str(n) for n in model.names.values()} != {str(n) for n in data["names"].values()}:
        raise BadInput(f"teacher={teacher} has other classes than the data: pseudo-labels need the same class names")
    index = {str(n): i for i, n in data["names"].items()}
    confidence = best_confidence(model, data, imgsz, device)

    partial = folder.with_name(folder.name + report.PART)
    shutil.rmtree(partial, ignore_errors=True)
    for kind in ("images", "labels"):
        (partial / kind).mkdir(parents=True)
    boxes = 0
    for i, image in enumerate(images):
        with host.quiet():
            found = model.predict(str(image), imgsz=imgsz, conf=confidence, device=device, verbose=False, save=False)[0]
        rows = [
            f"{index[str(model.names[int(c)])]} " + " ".join(f"{v:.6f}" for v in box)
            for c, box in zip(found.boxes.cls.tolist(), found.boxes.xywhn.tolist(), strict=True)
        ]
        boxes += len(rows)
        link_or_copy(image, partial / "images" / f"{i:06}{image.suffix.lower()}")
        (partial / "labels" / f"{i:06}.txt").write_text("\n".join(rows), encoding="utf-8")
    description = {k: v for k, v in data.items() if k in {"names", "channels", "val", "test"} and v is not None}
    description |= {"path": str(folder.resolve()), "train": [*listed(data["train"]), "images"]}
    (partial / "data.yaml").write_text(yaml.safe_dump(description, allow_unicode=True), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return PseudoLabels(folder / "data.yaml", confidence, len(images), boxes)


def best_confidence(model: Any, data: dict[str, Any], imgsz: int, device: str) -> float:
    """The confidence at which a model's F1, mean over the classes, is best on a data set's validation images.

    Raises:
        BadInput: the model has no true positive there.
    """
    with host.quiet():
        metrics = model.val(data=data["yaml_file"], imgsz=imgsz, device=device, plots=False, verbose=False, rect=False)
    curves = metrics.box.f1_curve
    if len(curves) == 0 or not curves.max() > 0:
        raise BadInput("teacher= detects nothing in the validation images: pseudo-labels need a teacher that does")
    return float(metrics.box.px[curves.mean(0).argmax()])


def link_or_copy(image: Path, target: Path) -> None:
    """Link an image to another path, or copy it."""
    try:
        os.symlink(image.resolve(), target)
    except OSError:  # such as Windows without the right to link
        shutil.copyfile(image, target)
