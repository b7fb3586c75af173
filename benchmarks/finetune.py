"""Does distillation help a student that is fine-tuned from weights of another data set?

    python benchmarks/finetune.py data=bccd.yaml model=yolo26n-w125.yaml teacher=yolo26s.yaml pretrain=voc6.yaml out=DIR

Student and teacher given as .yaml are trained on `pretrain=` first; the teacher then learns `data=` for
`teacher_steps=` batches; then yolo-mkd compare trains the student for `steps=` batches with each of `methods=`. A batch
has `batch=` images, before the comparison `start_batch=`. Other arguments are passed on to it, `mosaic=` to the
teacher's training too. An interrupted run is resumed, and more methods or seeds are added to it.

    python benchmarks/finetune.py mean=finetune-bccd.json,finetune-neudet.json

prints the mean over several data sets.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pretraining import (
    BATCH,
    SAME,
    accuracy_of,
    classes_of,
    pretrained_model,
    run_comparison,
    run_length,
    start_arguments,
    train_once,
)

from yolo_mkd import host, report
from yolo_mkd.evidence.compare.findings import NMS_FREE, mean_rows
from yolo_mkd.evidence.compare.tables import comparison_page, further_table, markdown_table, mean_table
from yolo_mkd.settings import parse

GIVEN = {"pretrain": None, "imgsz": 160, "steps": 600, "teacher_steps": 900, "seeds": 3, "assistant": "none"}
GIVEN |= {"methods": "plain,longer,native,mkd", "batch": BATCH, "start_batch": BATCH, "device": "cpu"}
OWN = {"data", "model", "teacher", "pretrain", "steps", "teacher_steps", "start_batch", "out"}


def mean_tables(files: str) -> str:
    """The mean over several reports, with and without NMS, of the methods that all of them have, in Markdown."""
    reports = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files.split(",")]
    rows, references = [row for found in reports for row in found["rows"]], reports[0]["references"]
    means = mean_rows(rows, references)
    tables = (mean_table(means, references), further_table(means, references, NMS_FREE))
    return "\n\n".join(markdown_table(table) for table in tables if table.rows)


def main(words: Sequence[str]) -> None:
    """Run everything, and write finetune-NAME.json, .md and .png to out=, where NAME is the data set's name."""
    given = {**GIVEN, **parse(words)}
    if "mean" in given:
        print(mean_tables(given["mean"]))
        return
    out, data, imgsz = Path(given["out"]).resolve(), host.check_data(given["data"]), given["imgsz"]
    images, name = len(classes_of(data)), Path(given["data"]).stem
    student = pretrained_model("model", given, out.parent / "pretrained")
    larger = pretrained_model("teacher", given, out.parent / "pretrained")
    through = {k: v for k, v in given.items() if k not in OWN}
    length = run_length(images, given["teacher_steps"], given["start_batch"])
    theirs = {"data": given["data"], "imgsz": imgsz, **length}
    theirs |= {**start_arguments(given), **{k: through[k] for k in ("mosaic",) if k in through}}
    teacher = train_once(larger, out / "teacher", **theirs)
    found = run_comparison(
        out / "compare", data=given["data"], model=student, teacher=teacher,
        **{**SAME, **run_length(images, given["steps"], given["batch"]), "nbs": given["batch"], **through},
    )  # fmt: skip
    figure = accuracy_of(teacher, given["data"], imgsz, device=given["device"])
    found |= {"command": " ".join(["python benchmarks/finetune.py", *words]), "teacher": {"map50_95": figure}}
    found["notes"] = [f"The teacher: {Path(given['teacher']).stem}, mAP50-95 {figure:.3f}.", *found["notes"]]
    report.write(out / f"finetune-{name}.json", "compare", found)
    page = comparison_page(found)
    for picture in ("differences", "cost"):
        page = page.replace(f"({picture}.png)", f"({picture}-{name}.png)")
        shutil.copy(out / "compare" / f"{picture}.png", out / f"{picture}-{name}.png")
    report.write_text(out / f"finetune-{name}.md", page)


if __name__ == "__main__":
    main(sys.argv[1:])
