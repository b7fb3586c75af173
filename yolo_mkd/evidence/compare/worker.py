"""One trial in a process of its own: train or resume it, validate its checkpoints, write its result.

python -m yolo_mkd.evidence.compare.worker FOLDER
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from ultralytics import YOLO

from yolo_mkd import chain, host, report
from yolo_mkd.cache.unlabelled import filter_images, find_images, held_out, listed
from yolo_mkd.chain.progress import EpochLines
from yolo_mkd.evidence.compare.findings import TASK_FIGURES, nms_free_map
from yolo_mkd.evidence.compare.pseudo_labels import label_images
from yolo_mkd.evidence.compare.schema import CheckpointScores, CurvePoint, HeadScores
from yolo_mkd.evidence.compare.trials import RESULT, load_task
from yolo_mkd.host import clock, snapshots
from yolo_mkd.locking import exclusive
from yolo_mkd.settings import BadInput, Failed

QUIET = {"plots": False, "verbose": False}
POINTS = 10  # of a run at which the student is validated, its end included
ENDING_S = 60  # within which the process of a lost machine ends; its trial may have begun again elsewhere by then


def complete_trial(folder: Path) -> None:
    """Train one trial to its end, validate it and write its result.

    Args:
        folder: the trial's, with its `cell.yaml`.
    """
    started = time.perf_counter()
    task = load_task(folder)
    for place in (task["arguments"], task["val"]):
        host.check_data(place.get("data"), fetch=False)
    if task.get("pseudo"):
        task["arguments"].update(pseudo_label_arguments(folder / "pseudo", task))
    clock.Clock.install()
    snapshots.Snapshots.install(POINTS)
    stages = train_chain(task["arguments"]) if task["chain"] else [train_stock(task["arguments"])]
    epochs = [clock.read(stage) for stage in stages]
    weights, device = stages[-1] / "weights", device_name(task["val"])
    last = validate_heads(weights / "last.pt", task["val"], folder)
    along = {e: validate_heads(file, task["val"], folder) for e, file in snapshots.read(stages[-1]).items()}
    result = {
        "status": "done",
        "best": validate_heads(weights / "best.pt", task["val"], folder),
        "last": last,
        **host.size(weights / "best.pt", task["val"]["imgsz"]),
        "epochs": len(epochs[-1]),
        **training_cost([e for stage in epochs for e in stage], device),
        "whole_s": round(time.perf_counter() - started, 1),
        "start": epochs[-1][0]["start"],
        "batches": [[e["images"], e["pixels"]] for e in epochs[-1]],
        "weights": str(weights / "best.pt"),
        "device": device,
        "curve": accuracy_curve(epochs, {**along, len(epochs[-1]): last}, device),
    }
    report.write(folder / RESULT, "cell", result)
    for stage in stages:
        snapshots.remove(stage)


def training_cost(epochs: Sequence[Mapping[str, Any]], device: str) -> dict[str, float]:
    """The wall-clock time of some epochs, `train_s`, and their `cost_s` [s].

    The cost is processor time on a CPU, because other programs lengthen the wall-clock time there, else it is the
    wall-clock time.
    """
    cost = "cpu_s" if device == "cpu" else "seconds"
    return {name: round(sum(e[key] for e in epochs), 3) for name, key in (("train_s", "seconds"), ("cost_s", cost))}


def accuracy_curve(
    epochs: Sequence[Sequence[Mapping[str, Any]]], scores: Mapping[int, CheckpointScores], device: str
) -> list[CurvePoint]:
    """The accuracy along a run, with what it had cost until then.

    Args:
        epochs: of each stage of the chain, the student's last, as `clock.read` gives them.
        scores: of the student's checkpoints by its epoch, from 1, in order.
        device: that it was trained on.

    Returns:
        A point a checkpoint; none where an earlier version has counted no images.
    """
    earlier = [e for stage in epochs[:-1] for e in stage]
    if any(e["seen"] is None for e in [*earlier, *epochs[-1]]):
        return []
    curve: list[CurvePoint] = []
    for epoch, found in scores.items():
        until = [*earlier, *epochs[-1][:epoch]]
        spent = training_cost(until, device)
        curve.append(
            {
                "epoch": epoch,
                "images": sum(e["seen"] for e in until),
                "train_s": spent["train_s"],
                "cost_s": spent["cost_s"],
                "map50_95": found["map50_95"],
                "nms_free_map50_95": nms_free_map(found),
            }
        )
    return curve


def train_chain(arguments: dict[str, Any]) -> list[Path]:
    """Distil the student, or resume an interrupted distillation; the folders of the stages, the student's last."""
    place = Path(arguments["project"]) / arguments["name"]
    begun = (place / "chain.yaml").exists()
    folder, record = chain.train(**({"resume": str(place)} if begun else arguments))
    return [folder / stage["name"] for stage in record["stages"]]


def train_stock(arguments: dict[str, Any]) -> Path:
    """Train the student with stock Ultralytics, or resume an interrupted training; the run's folder."""
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
    EpochLines("student").install(yolo)
    with host.without_epoch_bars():
        yolo.train(**more)
    return folder


def pseudo_label_arguments(folder: Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Label the unlabelled images with the teacher, unless that is done.

    Args:
        folder: of the data set with pseudo-labels.
        task: the contents of `cell.yaml`.

    Returns:
        Arguments of train: the data, and the epochs, warm-up and epochs without mosaic in longer epochs, so that each
        phase contains as many images as with batches of labelled and unlabelled images.
    """
    pseudo, arguments = task["pseudo"], task["arguments"]
    data = host.check_data(arguments["data"])
    images = filter_images(find_images(pseudo["unlabelled"]), held_out(data)).kept
    if not (folder / "data.yaml").is_file():
        imgsz, device = arguments.get("imgsz", 640), str(arguments.get("device") or "")
        found = label_images(pseudo["teacher"], data, images, folder, imgsz, device)
        report.write(folder / "labels.json", "pseudo", {"confidence": found.confidence, "boxes": found.boxes})
    count = sum(len(host.images_in(Path(p))) for p in listed(data["train"]))
    scale = count * (1 + pseudo["ratio"]) / (count + len(images))
    epochs, warmup, without_mosaic = (
        scale * arguments.get(k, host.arguments()[k]) for k in ("epochs", "warmup_epochs", "close_mosaic")
    )
    return {
        "data": str(folder / "data.yaml"),
        "epochs": max(1, round(epochs)),
        "warmup_epochs": round(warmup, 4),
        "close_mosaic": round(without_mosaic),
    }


def validate_heads(weights: Path, protocol: Mapping[str, Any], folder: Path) -> CheckpointScores:
    """The accuracy of a checkpoint through NMS; `nms_free` holds that of a one2one head without NMS.

    Args:
        weights: the checkpoint.
        protocol: arguments of Ultralytics' val.
        folder: of the trial, for temporary files.
    """
    found: CheckpointScores = {**validate_checkpoint(weights, protocol, folder)}
    if "one2one" in host.branches_of(host.head(YOLO(weights).model)):
        found["nms_free"] = validate_checkpoint(weights, {**protocol, "nms": False}, folder)
    return found


def validate_checkpoint(weights: Path, protocol: Mapping[str, Any], folder: Path) -> HeadScores:
    """mAP50-95 and mAP50 of boxes, and the mAP50-95 of each class in val; arguments as in `validate_heads`.

    With the mAP50-95 of masks or keypoints, if the task has them.
    """
    place = {"project": str(folder), "name": "val", "exist_ok": True}
    metrics = YOLO(weights).val(**protocol, rect=False, **QUIET, **place)
    shutil.rmtree(folder / "val", ignore_errors=True)  # Ultralytics leaves it empty
    box, own = metrics.box, host.named_metrics(metrics.results_dict)
    found: HeadScores = {
        "map50_95": round(float(box.map), 5),
        "map50": round(float(box.map50), 5),
        "classes": {metrics.names[int(c)]: round(float(box.maps[c]), 5) for c in box.ap_class_index},
    }
    found.update(cast(HeadScores, {name: own[name] for name in TASK_FIGURES if name in own}))
    return found


def device_name(protocol: Mapping[str, Any]) -> str:
    """The device of training and validation: cpu, mps, or the GPU's name."""
    named = str(protocol.get("device"))
    if named in {"cpu", "mps"}:
        return named
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def exit_with_parent() -> None:
    """End this process as soon as the comparison ends for whatever reason, which closes this process's stdin."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock would block a normal exit
        pass
    os._exit(3)


def main() -> None:
    """Entry point."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    try:
        folder = Path(sys.argv[1])
        with exclusive(folder, ENDING_S):
            complete_trial(folder)
    except (BadInput, Failed) as e:
        raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
