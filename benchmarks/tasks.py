"""Do masks, keypoints and oriented boxes gain by the soft targets of their own, beside those that every head shares?

    python benchmarks/tasks.py out=DIR tasks=segment,pose,obb seeds=3

The demo's scenes with labels of each task; teacher and student start from the shipped weights of the same scenes, so
that only what the task adds is new to them. The teacher learns for `teacher_epochs=`, then yolo-mkd compare trains the
student without a teacher, with the soft targets that every head shares, and with the task's own term too. An
interrupted run is resumed, and more seeds are added to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pretraining import SAME, run_comparison, train_once
from ultralytics import YOLO

from yolo_mkd import host, report
from yolo_mkd.demo import scenes
from yolo_mkd.demo.labels import EXTREMES
from yolo_mkd.evidence.compare.schema import Difference
from yolo_mkd.evidence.compare.statistics import paired_difference
from yolo_mkd.settings import parse
from yolo_mkd.settings.defaults import shipped

GIVEN = {"tasks": "segment,pose,obb", "seeds": 3, "imgsz": 128, "train": 240, "val": 60, "epochs": 8}
GIVEN |= {"teacher_epochs": 12, "share": 1.0, "workers": 0}
ENDINGS = {"segment": "-seg", "pose": "-pose", "obb": "-obb"}
TERMS = {"segment": "soft_mask", "pose": "soft_keypoint", "obb": "soft_obb"}
FIGURES = {"segment": "mask_map50_95", "pose": "pose_map50_95", "obb": "map50_95"}
WEIGHTS = {"teacher": "scenes-teacher-yolo26n.pt", "student": "scenes-start-w125.pt"}
WIDTHS = {"teacher": 0.25, "student": 0.125}
# mosaic and flips upside down change which point of a part is an extreme one
TRAINING = {**SAME, "batch": 8, "nbs": 8, "mosaic": 0, "flipud": 0, "scale": 0.2, "warmup_epochs": 1, "cos_lr": True}


def start(role: str, task: str, folder: Path) -> str:
    """The path of a model of a task whose weights are the shipped detector's, as far as they fit."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"base": f"yolo26{ENDINGS[task]}.yaml", "depth": 0.5, "width": WIDTHS[role], "max_channels": 1024}
    named = folder / f"yolo26n-{role}{ENDINGS[task]}.yaml"
    named.write_text(yaml.safe_dump(own), encoding="utf-8")
    file = Path(host.write_architecture(str(named), folder / "full"))
    whole = yaml.safe_load(file.read_text(encoding="utf-8")) | {"nc": len(scenes.CLASSES)}
    whole |= {"kpt_shape": [len(EXTREMES), 3]} if task == "pose" else {}
    file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    model = YOLO(str(file)).load(str(shipped("weights") / WEIGHTS[role]))
    model.model.names = dict(enumerate(scenes.CLASSES))
    model.save(str(named.with_suffix(".pt")))
    return str(named.with_suffix(".pt"))


def measure(task: str, given: dict[str, Any], out: Path) -> dict[str, Any]:
    """The comparison of one task, with the difference of the method with the task's term from that without it."""
    data = out / task / "data" / "scenes.yaml"
    if not data.exists():
        scenes.make(data.parent, given["train"], given["val"], 0, task)
    length = {"imgsz": given["imgsz"], "workers": given["workers"], "close_mosaic": 0}
    arguments = {**TRAINING, "data": str(data), **length}
    first = start("teacher", task, out / task / "start")
    teacher = train_once(first, out / task / "teacher", epochs=given["teacher_epochs"], **arguments)
    shared = "only:soft=2" + ("" if task == "obb" else ":soft_box=2")
    own = f"{shared}:{TERMS[task]}={given['share']:g}"
    found = run_comparison(
        out / task / "compare", f"plain,{shared},{own}", given["seeds"],
        model=start("student", task, out / task / "start"), teacher=teacher, assistant="none",
        epochs=given["epochs"], **arguments,
    )  # fmt: skip
    rows = {row["method"]: row for row in found["rows"]}
    figures = dict.fromkeys(("map50_95", FIGURES[task]))
    figures_of = {name: {m: rows[m][name]["by_seed"] for m in (shared, own)} for name in figures if name in rows[own]}
    gain: dict[str, Difference | None] = {n: paired_difference(by[own], by[shared]) for n, by in figures_of.items()}
    return {"rows": found["rows"], "term": TERMS[task], "beside_shared": gain}


def main(words: Sequence[str]) -> None:
    """Measure every task, and write tasks.json to out= after each."""
    given = {**GIVEN, **parse(words)}
    out, found = Path(given["out"]).resolve(), {}
    for task in str(given["tasks"]).split(","):
        found[task] = measure(task, given, out)
        command = " ".join(["python benchmarks/tasks.py", *words])
        report.write(out / "tasks.json", "tasks", {"command": command, "given": given, "tasks": found})


if __name__ == "__main__":
    main(sys.argv[1:])
