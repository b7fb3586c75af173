"""The demo: the whole product on data that it makes itself, from a teacher to a verified, timed file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from yolo_mkd import board, chain, host, report, scenes
from yolo_mkd.exporting import export
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import shipped
from yolo_mkd.timing import time as time_file

TEACHER = "scenes-teacher-yolo26n.pt"
ASSISTANT, STUDENT = "yolo26-w1875.yaml", "yolo26-w125.yaml"
TRAIN, VAL, SEED = 480, 120, 0
IMGSZ = 160  # pixels
# each model is trained alike: nothing but the knowledge differs
TRAINING = {"imgsz": IMGSZ, "batch": 16, "optimizer": "AdamW", "lr0": 0.002, "plots": False, "verbose": False}
TIMED_S = 5.0  # per model; enough samples for p90 on two cores
SHOWN = 3  # pictures in the strip


def demo(
    project: str | None = None, name: str = "demo", epochs: int = 12, json: str | Path | None = None
) -> dict[str, Any]:
    """Make a data set, distil a student from a shipped teacher through an assistant, and show what came of it.

    The same student is also trained without a teacher, with the same seed and epochs. Teacher, assistant and both
    students are exported, verified and timed on this machine's CPU.

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
    teacher = folder / "teacher" / TEACHER
    teacher.parent.mkdir()
    shutil.copy(shipped("weights") / TEACHER, teacher)

    training = {**TRAINING, "data": str(data), "epochs": epochs}
    distilled, record = chain.train(
        model=STUDENT, teacher=str(teacher), assistant=ASSISTANT, project=str(folder), name="chain", **training
    )
    plain = train_plain(distilled / STUDENT, folder, training)
    models = {
        "teacher": teacher,
        "assistant": Path(record["stages"][0]["weights"]),
        board.PLAIN: plain,
        board.DISTILLED: Path(record["stages"][-1]["weights"]),
    }
    document = {
        "command": f"yolo-mkd demo epochs={epochs}",
        "imgsz": IMGSZ,
        "names": list(scenes.CLASSES),
        "epochs": epochs,
        "pictures": {"train": TRAIN, "val": VAL, "seed": SEED},
        "rows": [measure(label, path, data) for label, path in models.items()],
        "gains": record["gains"],
        "minutes": round((time.perf_counter() - begun) / 60, 2),
    }
    written = report.write(folder / "demo.json", "demo", document)
    if json:
        report.write(json, "demo", document)
    drawn = board.picture(document, folder / "demo.png", strips(models, data))
    LOGGER.info(f"\n{board.table(document)}\n")
    for what, path in (("picture", drawn), ("report", written), ("student", models[board.DISTILLED])):
        LOGGER.info(f"{what:<9}{chain.shortest(path)}")
    LOGGER.info(f"Done in {document['minutes']:.1f} minutes.")
    return document


def train_plain(model: Path, folder: Path, training: dict[str, Any]) -> Path:
    """Train the student without a teacher: stock Ultralytics, same seed and epochs."""
    from ultralytics import YOLO

    LOGGER.info("\nM-KD demo: the same student without a teacher")
    student = YOLO(model)
    student.train(**training, project=str(folder), name="plain")
    return Path(student.ckpt_path)


def measure(label: str, path: Path, data: Path) -> dict[str, Any]:
    """One row of the board: accuracy on the val pictures, then the verified export's latency."""
    from ultralytics import YOLO

    LOGGER.info(f"\nM-KD demo: {label}: accuracy, export, check and latency")
    common = {"imgsz": IMGSZ, "rect": False, "plots": False, "verbose": False}
    box = YOLO(path).val(data=str(data), project=str(path.parents[1]), name="val", exist_ok=True, **common).box
    file = export(path, imgsz=IMGSZ, data=data)
    end_to_end = time_file(file, data=data, duration=TIMED_S)["segments"]["end_to_end"]
    return {
        "name": label,
        **host.size(path, IMGSZ),
        "map50_95": round(float(box.map), 5),
        "map50": round(float(box.map50), 5),
        "p50_ms": end_to_end["p50_ms"],
        "p90_ms": end_to_end["p90_ms"],
        "bytes": file.stat().st_size,
    }


def strips(models: dict[str, Path], data: Path) -> list[list[board.Panel]]:
    """Val pictures with what the teacher and the two students find in them."""
    from ultralytics import YOLO

    pictures = sorted((data.parent / "images" / "val").iterdir())[:SHOWN]
    rows: list[list[board.Panel]] = [[] for _ in pictures]
    for label in ("teacher", board.PLAIN, board.DISTILLED):
        for row, found in zip(rows, YOLO(models[label])(pictures, imgsz=IMGSZ, verbose=False), strict=True):
            row.append({"image": found.orig_img, "title": label, "boxes": found.boxes.data.numpy()})
    return rows
