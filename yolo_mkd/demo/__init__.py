"""The demo: the whole product on data that it makes itself, from a teacher to a verified, timed file."""

from __future__ import annotations

import json as json_text
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from yolo_mkd import chain, host, report
from yolo_mkd.demo import scenes
from yolo_mkd.demo import summary as board
from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.time import time as time_file
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import Failed, shipped

# made by this project, see weights/README.md: a trained teacher, and starts that saw other pictures than the demo's
WEIGHTS = {
    "teacher": "scenes-teacher-yolo26n.pt",
    "assistant": "scenes-start-w1875.pt",
    "student": "scenes-start-w125.pt",
}
TRAIN, VAL, SEED = 480, 120, 0  # pictures
IMGSZ = 160  # pixels
# the same for every model, so that nothing but the knowledge differs
TRAINING = {
    "imgsz": IMGSZ, "batch": 8, "nbs": 8, "warmup_epochs": 1, "optimizer": "AdamW", "lr0": 0.001, "cos_lr": True,
    "mosaic": 0, "close_mosaic": 2, "flipud": 0.5, "cache": "ram", "plots": False, "verbose": False,
}  # fmt: skip
TIMED_S = 5.0  # per model
SHOWN = 3  # pictures in the strip


def demo(
    project: str | None = None, name: str = "demo", epochs: int = 12, json: str | Path | None = None
) -> dict[str, Any]:
    """Make a data set, distil a student from a shipped teacher through an assistant, and show what came of it.

    The same student is also trained without a teacher, from the same start with the same seed and epochs. Teacher,
    assistant and both students are exported, verified and timed on this machine's CPU.

    Args:
        project: folder for the demo's folder, by default Ultralytics' runs folder.
        name: the demo's folder, made anew: demo, demo2, ...
        epochs: of each of the three trainings.
        json: a copy of the report, which is written as demo.json.

    Returns:
        The figures of the report.
    """
    begun = time.perf_counter()
    folder = host.run_folder(project, name, exist_ok=False)
    LOGGER.info(f"M-KD demo: drawing {TRAIN} + {VAL} pictures of hardware parts into {folder / 'data'}")
    data = scenes.make(folder / "data", TRAIN, VAL, SEED)
    starts = {}
    for stage, file in WEIGHTS.items():
        starts[stage] = folder / "weights" / file
        starts[stage].parent.mkdir(exist_ok=True)
        shutil.copy(shipped("weights") / file, starts[stage])

    training = {**TRAINING, "data": str(data), "epochs": epochs, "project": str(folder)}
    LOGGER.info("M-KD demo: the student without a teacher trains beside the chain, in a process of its own")
    with subprocess.Popen(plain_command(starts["student"], training), stdout=subprocess.DEVNULL) as plain:
        try:
            _, record = chain.train(
                model=str(starts["student"]), teacher=str(starts["teacher"]), assistant=str(starts["assistant"]),
                name="chain", **training,
            )  # fmt: skip
        except BaseException:
            plain.terminate()
            raise
    if plain.returncode:
        raise Failed(f"training the student without a teacher ended with exit code {plain.returncode}")
    models = {
        "teacher": starts["teacher"],
        "assistant": Path(record["stages"][0]["weights"]),
        board.PLAIN: folder / "plain" / "weights" / "best.pt",
        board.DISTILLED: Path(record["stages"][-1]["weights"]),
    }
    figures = {
        "command": f"yolo-mkd demo epochs={epochs}",
        "imgsz": IMGSZ,
        "names": list(scenes.CLASSES),
        "pictures": {"train": TRAIN, "val": VAL, "seed": SEED},
        "training": {**TRAINING, "epochs": epochs},
        "knowledge": record["knowledge"],
        "rows": measure(models, data),
        "minutes": round((time.perf_counter() - begun) / 60, 2),
    }
    written = report.write(folder / "demo.json", "demo", figures)
    if json:
        shutil.copy(written, json)
    document: dict[str, Any] = json_text.loads(written.read_text(encoding="utf-8"))
    drawn = board.picture(document, folder / "demo.png", strips(models, data))
    LOGGER.info(f"\n{board.table(document)}\n")
    for what, path in (("picture", drawn), ("report", written), ("student", models[board.DISTILLED])):
        LOGGER.info(f"{what:<9}{chain.shortest(path)}")
    LOGGER.info(f"done in {document['minutes']:.1f} minutes")
    return document


def plain_command(start: Path, training: dict[str, Any]) -> list[str]:
    """Stock Ultralytics' own command that trains the student without a teacher."""
    words = [f"{key}={value}" for key, value in {**training, "model": start, "name": "plain"}.items()]
    return [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()", "train", *words]


def measure(models: dict[str, Path], data: Path) -> list[dict[str, Any]]:
    """The rows of the board: accuracy on the val pictures, then the verified export's latency.

    Both students are one graph with other weights, so one timing serves both; two would differ by noise alone.
    """
    from ultralytics import YOLO

    rows: list[dict[str, Any]] = []
    for label, path in models.items():
        LOGGER.info(f"\nM-KD demo: {label}: accuracy, export, check and latency")
        common = {"imgsz": IMGSZ, "rect": False, "plots": False, "verbose": False}
        box = YOLO(path).val(data=str(data), project=str(path.parents[1]), name="val", exist_ok=True, **common).box
        file = export(path, head="one2many", imgsz=IMGSZ, data=data)  # the head that mAP is measured with
        if label == board.DISTILLED:
            LOGGER.info("latency   the plain student's: the same graph")
            latency = {key: rows[-1][key] for key in ("p50_ms", "p90_ms")}
        else:
            timed = time_file(file, data=data, duration=TIMED_S, threads=1)["segments"]["end_to_end"]
            latency = {key: timed[key] for key in ("p50_ms", "p90_ms")}
        rows.append(
            {
                "name": label,
                **host.size(path, IMGSZ),
                "map50_95": round(float(box.map), 5),
                "map50": round(float(box.map50), 5),
                **latency,
                "bytes": file.stat().st_size,
            }
        )
    return rows


def strips(models: dict[str, Path], data: Path) -> list[list[board.Panel]]:
    """Val pictures with what the teacher and the two students find in them."""
    from ultralytics import YOLO

    pictures = sorted((data.parent / "images" / "val").iterdir())[:SHOWN]
    rows: list[list[board.Panel]] = [[] for _ in pictures]
    for label in ("teacher", board.PLAIN, board.DISTILLED):
        for row, found in zip(rows, YOLO(models[label])(pictures, imgsz=IMGSZ, verbose=False), strict=True):
            row.append({"image": found.orig_img, "title": label, "boxes": found.boxes.data.numpy()})
    return rows
