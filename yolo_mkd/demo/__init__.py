"""The demo: the whole chain on a data set that it generates, from a teacher to a checked and timed export."""

from __future__ import annotations

import json as json_text
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

from yolo_mkd import chain, host, report
from yolo_mkd.demo import scenes
from yolo_mkd.demo.summary import DISTILLED, PLAIN, ModelRow, Panel, Summary, draw_summary, summary_table
from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.time import time as time_file
from yolo_mkd.evidence.page import write_page_after
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import Failed, shipped

# made by this project, see weights/README.md: a trained teacher, and initial weights trained on other images
WEIGHTS = {
    "teacher": "scenes-teacher-yolo26n.pt",
    "assistant": "scenes-start-w1875.pt",
    "student": "scenes-start-w125.pt",
}
TRAIN, VAL, SEED = 480, 120, 0  # images
IMGSZ = 160  # pixels
# the same for every model, so that only distillation differs
TRAINING = {
    "imgsz": IMGSZ, "batch": 8, "nbs": 8, "warmup_epochs": 1, "optimizer": "AdamW", "lr0": 0.001, "cos_lr": True,
    "mosaic": 0, "close_mosaic": 2, "flipud": 0.5, "cache": "ram", "plots": False, "verbose": False,
}  # fmt: skip
TIMED_S = 5.0  # per model
SHOWN = 3  # images with detections in the plot


def demo(
    project: str | None = None, name: str = "demo", epochs: int = 12, json: str | Path | None = None
) -> dict[str, Any]:
    """Generate a data set, distil a student from a shipped teacher through an assistant, and summarise the results.

    The same student is also trained without a teacher, with the same initial weights, seed and epochs. Teacher,
    assistant and both students are exported, checked and timed on this machine's CPU.

    Args:
        project: folder for the demo's folder, by default Ultralytics' runs folder.
        name: of the demo's new folder: demo, demo2, ...
        epochs: of each of the three trainings.
        json: a copy of the report, which is written as demo.json.

    Returns:
        The figures of the report.
    """
    started = time.perf_counter()
    folder = host.run_folder(project, name, exist_ok=False)
    LOGGER.info(f"M-KD demo: generating {TRAIN} train and {VAL} val images of hardware in {folder / 'data'}")
    data = scenes.make(folder / "data", TRAIN, VAL, SEED)
    starts = copy_weights(folder / "weights")
    training = {**TRAINING, "data": str(data), "epochs": epochs, "project": str(folder)}
    record = train_students(starts, training)
    models = {
        "teacher": starts["teacher"],
        "assistant": Path(record["stages"][0]["weights"]),
        PLAIN: folder / "plain" / "weights" / "best.pt",
        DISTILLED: Path(record["stages"][-1]["weights"]),
    }
    figures = {
        "command": f"yolo-mkd demo epochs={epochs}",
        "imgsz": IMGSZ,
        "names": list(scenes.CLASSES),
        "pictures": {"train": TRAIN, "val": VAL, "seed": SEED},
        "training": {**TRAINING, "epochs": epochs},
        "knowledge": record["knowledge"],
        "rows": measure_models(models, data),
        "minutes": round((time.perf_counter() - started) / 60, 2),
    }
    written = report.write(folder / "demo.json", "demo", figures)
    if json:
        shutil.copy(written, json)
    document = cast(Summary, json_text.loads(written.read_text(encoding="utf-8")))
    plot = draw_summary(document, folder / "demo.png", detection_panels(models, data))
    LOGGER.info(f"\n{summary_table(document)}\n")
    for what, path in (("plot", plot), ("report", written), ("student", models[DISTILLED])):
        LOGGER.info(f"{what:<9}{chain.shortest(path)}")
    write_page_after(folder)
    LOGGER.info(f"done in {document['minutes']:.1f} minutes")
    return dict(document)


def copy_weights(folder: Path) -> dict[str, Path]:
    """Copy the shipped weights to a folder; the file of each model."""
    folder.mkdir(exist_ok=True)
    return {model: Path(shutil.copy(shipped("weights") / file, folder / file)) for model, file in WEIGHTS.items()}


def train_students(starts: dict[str, Path], training: dict[str, Any]) -> chain.Chain:
    """Train the chain, and beside it the student without a teacher in a second process.

    Args:
        starts: initial weights of each model.
        training: arguments of Ultralytics' train.

    Returns:
        The contents of the chain's chain.yaml.

    Raises:
        Failed: training the student without a teacher failed.
    """
    LOGGER.info("M-KD demo: training the student without a teacher in a second process, beside the chain")
    models = {argument: str(starts[argument]) for argument in ("teacher", "assistant")}
    with subprocess.Popen(plain_command(starts["student"], training), stdout=subprocess.DEVNULL) as plain:
        try:
            _, record = chain.train(model=str(starts["student"]), **models, name="chain", **training)
        except BaseException:
            plain.terminate()
            raise
    if plain.returncode:
        raise Failed(f"training the student without a teacher ended with exit code {plain.returncode}")
    return record


def plain_command(start: Path, training: dict[str, Any]) -> list[str]:
    """Stock Ultralytics' own command that trains the student without a teacher."""
    words = [f"{key}={value}" for key, value in {**training, "model": start, "name": "plain"}.items()]
    return [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "train", *words]


def measure_models(models: dict[str, Path], data: Path) -> list[ModelRow]:
    """The figures of each model: accuracy on the val images, and the latency of the checked export.

    Both students have the same graph, so only the plain one is timed: two timings would differ only by noise.
    """
    from ultralytics import YOLO

    rows: list[ModelRow] = []
    for label, path in models.items():
        LOGGER.info(f"\nM-KD demo: {label}: accuracy, export, check and latency")
        common = {"imgsz": IMGSZ, "rect": False, "plots": False, "verbose": False}
        box = YOLO(path).val(data=str(data), project=str(path.parents[1]), name="val", exist_ok=True, **common).box
        file = export(path, head="one2many", imgsz=IMGSZ, data=data)  # the head that mAP is measured with
        if label == DISTILLED:
            LOGGER.info("latency   as measured for the plain student, which has the same graph")
            p50_ms, p90_ms = rows[-1]["p50_ms"], rows[-1]["p90_ms"]
        else:
            timed = time_file(file, data=data, duration=TIMED_S, threads=1)["segments"]["end_to_end"]
            p50_ms, p90_ms = timed["p50_ms"], timed["p90_ms"]
        size = host.size(path, IMGSZ)
        row: ModelRow = {
            "name": label,
            "parameters": int(size["parameters"]),
            "gflops": size["gflops"],
            "map50_95": round(float(box.map), 5),
            "map50": round(float(box.map50), 5),
            "p50_ms": p50_ms,
            "p90_ms": p90_ms,
            "bytes": file.stat().st_size,
        }
        rows.append(row)
    return rows


def detection_panels(models: dict[str, Path], data: Path) -> list[list[Panel]]:
    """Some val images with the detections of the teacher and the two students, a row of panels an image."""
    from ultralytics import YOLO

    images = sorted((data.parent / "images" / "val").iterdir())[:SHOWN]
    rows: list[list[Panel]] = [[] for _ in images]
    for label in ("teacher", PLAIN, DISTILLED):
        for row, found in zip(rows, YOLO(models[label])(images, imgsz=IMGSZ, verbose=False), strict=True):
            row.append({"image": found.orig_img, "title": label, "boxes": found.boxes.data.numpy()})
    return rows
