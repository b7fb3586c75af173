"""The accuracy of a trained model on some validation images, on those classes of the data that it has by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_mkd import host
from yolo_mkd.distill.matching import shared_classes
from yolo_mkd.evidence.plan import sample
from yolo_mkd.host.scoring import only_classes
from yolo_mkd.host.spec import MERGED_NAMES
from yolo_mkd.settings import BadInput


@dataclass(frozen=True)
class QuickEval:
    """Validates models on the same few images.

    Attributes:
        data: the data set, as `host.check_data` returns it.
        images: of its validation images.
        folder: for temporary files.
        device: as Ultralytics takes it.
        single_cls: all classes of the data count as one, and of the model only those that the data has.
    """

    data: Mapping[str, Any]
    images: list[Path]
    folder: Path
    device: str
    single_cls: bool = False

    def score(self, name: str, file: str, imgsz: int) -> dict[str, Any]:
        """Validate a model with Ultralytics.

        Args:
            name: of the model, for messages and files.
            file: its .pt.
            imgsz: image size [pixels].

        Returns:
            map50_95 and map50 of boxes, and `classes`, the indices of the data's classes that it has; or why_not.
        """
        from ultralytics import YOLO

        model = host.load_detector(name, file, transformer=True)
        classes = dict(shared_classes(self.data["names"], model.names))
        if self.single_cls and not classes and model.names == MERGED_NAMES:
            classes = dict.fromkeys(self.data["names"], 0)
        if not classes:
            return {"classes": [], "why_not": "has no class of this data"}
        try:
            host.check_labels(dict(self.data), getattr(model, "task", "detect"))
        except BadInput:
            return {
                "classes": list(classes),
                "why_not": f"is a {model.task} model, but the data has no labels for this task",
            }
        place = self.folder / f"exam_{name}"
        data = sample.copy(self.data, {"val": self.images}, place, classes, model.names)
        if not any(f.stat().st_size for f in (place / "labels/val").glob("*.txt")):
            return {"classes": list(classes), "why_not": "has none of the classes on these images"}
        yolo = YOLO(file)
        merging = {"single_cls": True, "validator": only_classes(yolo, classes.values())} if self.single_cls else {}
        found = yolo.val(
            data=str(data), imgsz=imgsz, batch=8, device=self.device, workers=0, plots=False, verbose=False,
            project=str(place), name="val", exist_ok=True, **merging,
        )  # fmt: skip
        return {"classes": list(classes), "map50_95": float(found.box.map), "map50": float(found.box.map50)}
