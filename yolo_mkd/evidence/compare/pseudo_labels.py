"""Hard pseudo-labels: what people use unlabelled images for today, so the control for teaching on them.

The teacher labels the images once, at the confidence at which its F1 on the validation images is best, and stock
Ultralytics trains on its boxes as if people had drawn them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd import host
from yolo_mkd.cache.unlabelled import listed
from yolo_mkd.settings import BadInput

PART = ".part"


@dataclass(frozen=True)
class PseudoLabels:
    """A data set of the labelled images and the teacher's boxes on the others.

    Attributes:
        file: its YAML file; val and test are those of the labelled set.
        confidence: at which the teacher's boxes were taken.
        images: with pseudo-labels, those without a box included.
        boxes: on them.
    """

    file: Path
    confidence: float
    images: int
    boxes: int


def label(
    teacher: str | Path, data: dict[str, Any], images: Sequence[Path], folder: Path, imgsz: int, device: str = ""
) -> PseudoLabels:
    """Label images with a teacher.

    Args:
        teacher: its .pt file.
        data: the labelled data set, as `host.check_data` gives it.
        images: without labels.
        folder: where the pseudo-labelled data set goes; images are linked, or copied where links are not possible.
        imgsz: image size that the teacher sees [pixels].
        device: as Ultralytics takes it.

    Raises:
        BadInput: the teacher knows other classes than the data, or finds nothing in the validation images.
    """
    from ultralytics import YOLO

    model = YOLO(str(teacher))
    if {str(n) for n in model.names.values()} != {str(n) for n in data["names"].values()}:
        raise BadInput(f"teacher={teacher} names other classes than the data: pseudo-labels need the same ones")
    index = {str(n): i for i, n in data["names"].items()}
    confidence = best_confidence(model, data, imgsz, device)

    partial = folder.with_name(folder.name + PART)
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
        place(image, partial / "images" / f"{i:06}{image.suffix.lower()}")
        (partial / "labels" / f"{i:06}.txt").write_text("\n".join(rows), encoding="utf-8")
    described = {k: v for k, v in data.items() if k in {"names", "channels", "val", "test"} and v is not None}
    described |= {"path": str(folder.resolve()), "train": [*listed(data["train"]), "images"]}
    (partial / "data.yaml").write_text(yaml.safe_dump(described, allow_unicode=True), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return PseudoLabels(folder / "data.yaml", confidence, len(images), boxes)


def best_confidence(model: Any, data: dict[str, Any], imgsz: int, device: str) -> float:
    """The confidence at which a model's F1, mean over the classes, is best on a data set's validation images.

    Raises:
        BadInput: it finds nothing there.
    """
    with host.quiet():
        metrics = model.val(data=data["yaml_file"], imgsz=imgsz, device=device, plots=False, verbose=False, rect=False)
    curves = metrics.box.f1_curve
    if len(curves) == 0 or not curves.max() > 0:
        raise BadInput("the teacher finds nothing in the validation images: pseudo-labels need one that does")
    return float(metrics.box.px[curves.mean(0).argmax()])


def place(image: Path, target: Path) -> None:
    """Link an image to where it is wanted, or copy it."""
    try:
        os.symlink(image.resolve(), target)
    except OSError:  # such as Windows without the right to link
        shutil.copyfile(image, target)
