"""Does distillation help a student that begins, as people begin, from another data set's weights?

    python benchmarks/finetune.py data=bccd.yaml model=yolo26n-w125.yaml teacher=yolo26s.yaml pretrain=voc6.yaml out=DIR

Student and teacher given as .yaml are trained on `pretrain=` first; the teacher then learns `data=` for
`teacher_steps=` batches; then yolo-mkd compare trains the student for `steps=` batches by each of `methods=`. A batch
is of `batch=` images, before the comparison of `start_batch=`. Other arguments go through to it, `mosaic=` to the
teacher's training too. What was cut off goes on where it was, and more methods or seeds add to what is there.

    python benchmarks/finetune.py mean=finetune-bccd.json,finetune-neudet.json

prints the mean over several sets of what was found.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from starting import BATCH, SAME, accuracy_of, classes_of, compared, of_start, pretrained, rounds, trained

from yolo_mkd import host, report
from yolo_mkd.evidence.compare.findings import mean_rows
from yolo_mkd.evidence.compare.tables import markdown, mean_table, nms_free_table, piped
from yolo_mkd.settings import parse

GIVEN = {"pretrain": None, "imgsz": 160, "steps": 600, "teacher_steps": 900, "seeds": 3, "assistant": "none"}
GIVEN |= {"methods": "plain,longer,native,mkd", "batch": BATCH, "start_batch": BATCH, "device": "cpu"}
OWN = {"data", "model", "teacher", "pretrain", "steps", "teacher_steps", "start_batch", "out"}


def mean(files: str) -> str:
    """The mean over the reports of several sets, in Markdown, through NMS and without; of the methods that all have."""
    reports = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files.split(",")]
    rows, references = [row for found in reports for row in found["rows"]], reports[0]["references"]
    found = {"references": references, "mean": mean_rows(rows, references)}
    tables = (mean_table(found), nms_free_table(found, found["mean"]))
    return "\n\n".join("\n".join(piped(table)) for table in tables if table)


def main(words: Sequence[str]) -> None:
    """Run everything and write finetune-NAME.json, .md and .png into out=, NAME being the data set's."""
    given = {**GIVEN, **parse(words)}
    if "mean" in given:
        print(mean(given["mean"]))
        return
    out, data, imgsz = Path(given["out"]).resolve(), host.check_data(given["data"]), given["imgsz"]
    images, name = len(classes_of(data)), Path(given["data"]).stem
    student = pretrained("model", given, out.parent / "pretrained")
    larger = pretrained("teacher", given, out.parent / "pretrained")
    through = {k: v for k, v in given.items() if k not in OWN}
    theirs = {"data": given["data"], "imgsz": imgsz, **rounds(images, given["teacher_steps"], given["start_batch"])}
    theirs |= {**of_start(given), **{k: through[k] for k in ("mosaic",) if k in through}}
    teacher = trained(larger, out / "teacher", **theirs)
    found = compared(
        out / "compare", data=given["data"], model=student, teacher=teacher,
        **{**SAME, **rounds(images, given["steps"], given["batch"]), "nbs": given["batch"], **through},
    )  # fmt: skip
    figure = accuracy_of(teacher, given["data"], imgsz, device=given["device"])
    found |= {"command": " ".join(["python benchmarks/finetune.py", *words]), "teacher": {"map50_95": figure}}
    found["notes"] = [f"The teacher: {Path(given['teacher']).stem}, mAP50-95 {figure:.3f}.", *found["notes"]]
    report.write(out / f"finetune-{name}.json", "compare", found)
    page = markdown(found)
    for picture in ("differences", "cost"):
        page = page.replace(f"({picture}.png)", f"({picture}-{name}.png)")
        shutil.copy(out / "compare" / f"{picture}.png", out / f"{picture}-{name}.png")
    (out / f"finetune-{name}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
