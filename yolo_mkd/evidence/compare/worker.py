"""One cell, in a process of its own: train it or go on with it, validate it as all are validated, write its result.

python -m yolo_mkd.evidence.compare.worker FOLDER
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics import YOLO

from yolo_mkd import chain, host, report
from yolo_mkd.cache.unlabelled import filter_images, find_images, held_out, listed
from yolo_mkd.evidence.compare.pseudo_labels import label
from yolo_mkd.evidence.compare.trials import RESULT, TASK
from yolo_mkd.host import clock
from yolo_mkd.settings import BadInput, Failed

QUIET = {"plots": False, "verbose": False}


def run(folder: Path) -> None:
    """Bring one cell to its end.

    Args:
        folder: the cell's, with its `cell.yaml`.
    """
    begun = time.perf_counter()
    task = yaml.safe_load((folder / TASK).read_text(encoding="utf-8"))
    if task.get("pseudo"):
        task["arguments"].update(labelled(folder / "pseudo", task))
    clock.Clock.install()
    stages = train_chain(task["arguments"]) if task["chain"] else [train_stock(task["arguments"])]
    epochs = [clock.read(stage) for stage in stages]
    weights, used = stages[-1] / "weights", device(task["val"])
    found = {
        "status": "done",
        "best": scores(weights / "best.pt", task["val"], folder),
        "last": scores(weights / "last.pt", task["val"], folder),
        **host.size(weights / "best.pt", task["val"]["imgsz"]),
        "epochs": len(epochs[-1]),
        **spent([e for stage in epochs for e in stage], used),
        "whole_s": round(time.perf_counter() - begun, 1),
        "start": epochs[-1][0]["start"],
        "batches": [[e["images"], e["pixels"]] for e in epochs[-1]],
        "weights": str(weights / "best.pt"),
        "device": used,
    }
    report.write(folder / RESULT, "cell", found)


def spent(epochs: Sequence[dict[str, Any]], device: str) -> dict[str, float]:
    """What some epochs took: `train_s` on the wall's clock and, as `cost_s`, of the device [seconds].

    On a CPU the cost is processor time, since what else runs there would count in wall time.
    """
    cost = "cpu_s" if device == "cpu" else "seconds"
    return {name: round(sum(e[key] for e in epochs), 3) for name, key in (("train_s", "seconds"), ("cost_s", cost))}


def train_chain(arguments: dict[str, Any]) -> list[Path]:
    """Distil the student, or go on where it was cut off; the folders of the stages, the student's last."""
    place = Path(arguments["project"]) / arguments["name"]
    begun = (place / "chain.yaml").exists()
    folder, record = chain.train(**({"resume": str(place)} if begun else arguments))
    return [folder / stage["name"] for stage in record["stages"]]


def train_stock(arguments: dict[str, Any]) -> Path:
    """Train the student as Ultralytics does, or go on where that was cut off; the run's folder."""
    folder = Path(arguments["project"]) / arguments["name"]
    keeper = host.CheckpointKeeper(folder)
    if keeper.finished():
        return folder
    if keeper.restore():
        yolo, more = YOLO(folder / "weights" / "last.pt"), {"resume": True, "save_dir": str(folder)}
    else:
        shutil.rmtree(folder, ignore_errors=True)
        yolo, more = YOLO(arguments["model"]), {k: v for k, v in arguments.items() if k != "model"}
    keeper.install(yolo)
    yolo.train(**more)
    return folder


def labelled(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Label the unlabelled images with the teacher, once.

    Returns:
        The data to train on; and how long the run, its warm-up and its end without mosaic are in longer epochs, so that
        each sees as many images as with joined batches.
    """
    asked, arguments = task["pseudo"], task["arguments"]
    data = host.check_data(arguments["data"])
    pool = filter_images(find_images(asked["unlabelled"]), held_out(data)).kept
    if not (folder / "data.yaml").is_file():
        size = arguments.get("imgsz", 640)
        found = label(asked["teacher"], data, pool, folder, size, str(arguments.get("device") or ""))
        report.write(folder / "labels.json", "pseudo", {"confidence": found.confidence, "boxes": found.boxes})
    count = sum(len(host.images_in(Path(p))) for p in listed(data["train"]))
    shorter = count * (1 + asked["ratio"]) / (count + len(pool))
    epochs, warmup, end = (
        shorter * arguments.get(k, host.arguments()[k]) for k in ("epochs", "warmup_epochs", "close_mosaic")
    )
    return {
        "data": str(folder / "data.yaml"),
        "epochs": max(1, round(epochs)),
        "warmup_epochs": round(warmup, 4),
        "close_mosaic": round(end),
    }


def scores(weights: Path, protocol: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The accuracy of a checkpoint through NMS, as Ultralytics validates; `nms_free` holds that of a one2one head."""
    found = validated(weights, protocol, folder)
    if "one2one" in host.branches_of(host.head(YOLO(weights).model)):
        found["nms_free"] = validated(weights, {**protocol, "nms": False}, folder)
    return found


def validated(weights: Path, protocol: dict[str, Any], folder: Path) -> dict[str, Any]:
    """mAP50-95 and mAP50 of boxes, and mAP50-95 of each class that val has."""
    place = {"project": str(folder), "name": "val", "exist_ok": True}
    metrics = YOLO(weights).val(**protocol, rect=False, **QUIET, **place)
    shutil.rmtree(folder / "val", ignore_errors=True)  # Ultralytics leaves it empty
    box = metrics.box
    return {
        "map50_95": round(float(box.map), 5),
        "map50": round(float(box.map50), 5),
        "classes": {metrics.names[int(c)]: round(float(box.maps[c]), 5) for c in box.ap_class_index},
    }


def device(protocol: dict[str, Any]) -> str:
    """What trained and validated here: cpu, mps, or the card's name."""
    named = str(protocol.get("device"))
    if named in {"cpu", "mps"}:
        return named
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def leave_with_parent() -> None:
    """End as soon as the comparison does, however it ended: its end of this process's input closes."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock would stand in the way of a normal end
        pass
    os._exit(3)


def main() -> None:
    """Entry point."""
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        run(Path(sys.argv[1]))
    except (BadInput, Failed) as e:
        raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
