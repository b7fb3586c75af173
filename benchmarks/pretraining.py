"""What the benchmarks share: models pretrained on another data set, arguments, and the length of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from yolo_mkd import compare, host
from yolo_mkd.cache.unlabelled import listed

BATCH = 16
EPOCHS = {"teacher": 20, "model": 30}  # of pretraining
SAME = {"batch": BATCH, "nbs": BATCH, "optimizer": "AdamW", "lr0": 0.002, "patience": 0, "val": False, "plots": False}
SAME |= {"cache": "ram", "verbose": False, "device": "cpu"}


def classes_of(data: dict[str, Any]) -> dict[str, set[int]]:
    """The classes in each train image of a data set, by file."""
    found = {}
    for image in (i for place in listed(data["train"]) for i in host.images_in(Path(place))):
        labels = Path(str(image.with_suffix(".txt")).replace("/images/", "/labels/"))
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.exists() else []
        found[str(image)] = {int(line.split()[0]) for line in lines if line.strip()}
    return found


def run_length(images: int, steps: int, batch: int = BATCH) -> dict[str, int]:
    """The arguments epochs and close_mosaic of a run of about `steps` batches, whatever the number of images."""
    epochs = max(1, round(steps / math.ceil(images / batch)))
    return {"epochs": epochs, "close_mosaic": epochs // 10}


def train_once(start: str, folder: Path, **arguments: Any) -> str:
    """Train a model unless that is done; the path of its last.pt, which does not depend on the validation."""
    if not (folder / "done").exists():
        place = {"project": str(folder.parent.resolve()), "name": folder.name, "exist_ok": True}
        YOLO(start).train(seed=0, **{**SAME, **arguments}, **place)
        (folder / "done").touch()
    return str((folder / "weights" / "last.pt").resolve())


def start_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Batch size and device of all trainings before a comparison, from the arguments of the command line."""
    batch = given.get("start_batch", BATCH)
    return {"batch": batch, "nbs": batch, **{k: given[k] for k in ("device", "workers") if k in given}}


def pretrained_model(role: str, given: Mapping[str, Any], out: Path) -> str:
    """The path of a model to start from: a .pt as it is, a .yaml after training on `pretrain=` at 160 px.

    Args:
        role: teacher or model.
        given: the arguments of the command line.
        out: folder of the training, which benchmarks with the same folder share.
    """
    model = str(given[role])
    if model.endswith(".pt"):
        return model
    out.mkdir(parents=True, exist_ok=True)
    start = host.write_architecture(host.find_model(role, model), out)
    arguments = {"data": given["pretrain"], "imgsz": 160, "epochs": EPOCHS[role], "close_mosaic": 5, "cos_lr": True}
    arguments |= start_arguments(given)
    return train_once(start, out / Path(model).stem, **arguments)


def run_comparison(folder: Path, methods: str, seeds: Any, **arguments: Any) -> dict[str, Any]:
    """Run a comparison, resume it, or add methods and seeds to it; the contents of its compare.json."""
    if (folder / "compare.yaml").exists():
        return dict(compare(resume=str(folder), methods=methods, seeds=seeds))
    place = {"project": str(folder.parent), "name": folder.name}
    return dict(compare(methods=methods, seeds=seeds, **place, **arguments))


def accuracy_of(model: str, data: str, imgsz: int, nms: bool | None = None, device: Any = "cpu") -> float:
    """A trained model's mAP50-95 on val, through NMS; without NMS if nms=False."""
    box = YOLO(model).val(data=data, imgsz=imgsz, rect=False, plots=False, verbose=False, device=device, nms=nms).box
    return round(float(box.map), 4)
