"""What a model card states, read from a finished training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from yolo_mkd import host, report
from yolo_mkd.chain import FIGURES, Chain
from yolo_mkd.chain.document import TeacherFile
from yolo_mkd.chain.stages import Stage
from yolo_mkd.deploy.pareto.rows import ParetoRow, report_files
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.card.text import model_name, plain, without_folders
from yolo_mkd.evidence.page.exports import joined
from yolo_mkd.evidence.page.training import command_of
from yolo_mkd.settings import BadInput

LICENCE = "agpl-3.0"  # of Ultralytics, and so of what is trained with it
INTERVALS = ("compared with", "figure", "difference, 95 % interval", "seeds")
PIPELINES = {"mask_map50": "image-segmentation", "pose_map50": "keypoint-detection"}  # by what only such models have
MEANINGS = {  # of the terms of M-KD; the others are named after their method
    "soft": "class scores",
    "soft_box": "boxes, by generalised IoU",
    "soft_dfl": "box-side distributions",
    "attention": "attention maps of hidden layers",
    "relation": "relation matrices between hidden layers",
    "guidance": "neck features",
    "exploration": "neck features kept independent of the teacher's",
}


@dataclass(frozen=True)
class CardFacts:
    """The card's parts; tables are Markdown already, and names in sentences are escaped.

    Attributes:
        front: YAML for Hugging Face, without its `---` lines.
        title: student, teacher and data.
        accuracy: table of the stages.
        measured_on: what the accuracy was measured on.
        intervals: table of paired differences; empty where none was measured.
        latency: table of exported and timed files; empty where there are none.
        machines: that timed.
        data: sentences on the data.
        teachers: the teachers' names, joined.
        stages: one sentence a stage.
        terms: table of the distillation terms.
        calibrated: whether the terms' figures are shares of the detection gradient.
        until: share of the epochs with distillation.
        command: that makes the same training, without folders.
        digests: table of files and SHA-256.
        versions: of the packages.
        seed: of the training.
    """

    front: str
    title: str
    accuracy: str
    measured_on: str
    intervals: str
    latency: str
    machines: list[str]
    data: list[str]
    teachers: str
    stages: list[str]
    terms: str
    calibrated: bool
    until: float
    command: str
    digests: str
    versions: str
    seed: int


def card_facts(chain: Chain, folder: Path, intervals: Sequence[Sequence[str]]) -> CardFacts:
    """All that the card states.

    Args:
        chain: the contents of chain.yaml, every stage of it done.
        folder: the run's, with the reports of its exports.
        intervals: as `find_intervals` returns them.
    """
    student, arguments, known = chain["stages"][-1], chain["arguments"], chain["knowledge"]
    name, data = model_name(student["model"]), Path(arguments["data"]).stem
    files = [t["file"] for t in teacher_files(chain)] or [chain["stages"][0]["model"]]
    teachers = " and ".join(map(model_name, files))
    rows = [row for row in exported(folder) if row["source"] in {student["sha256"], None}]
    return CardFacts(
        front=front_matter(student, data),
        title=plain(f"{name}, distilled from {teachers} on {data}"),
        accuracy=accuracy_table(chain["stages"]),
        measured_on=plain(f"{data} at {arguments.get('imgsz', 640)} pixels"),
        intervals=report.table(intervals, INTERVALS, markdown=True) if intervals else "",
        latency=latency_table(rows),
        machines=list(dict.fromkeys(plain(r["machine"]) for r in rows if r["p50_ms"] is not None)),
        data=data_lines(arguments, known),
        teachers=plain(teachers),
        stages=[stage_line(stage) for stage in chain["stages"]],
        terms=terms_table(known),
        calibrated=bool(known.get("calibrate", True)),
        until=float(known.get("until", 1)),
        command=command_of(cast(Chain, without_folders(dict(chain)))),
        digests=digest_table(chain),
        versions=", ".join(f"{k} {v}" for k, v in chain["versions"].items()),
        seed=chain["seed"],
    )


def teacher_files(chain: Chain) -> list[TeacherFile]:
    """The trained teachers that a chain was given; none where it trains its teacher itself."""
    return [t for t in (chain["teacher"], *chain.get("more_teachers", [])) if t]


def front_matter(student: Stage, data: str) -> str:
    """The YAML that Hugging Face reads: licence, library, task and results."""
    pipeline = next((kind for key, kind in PIPELINES.items() if key in student["metrics"]), "object-detection")
    scores = [
        {"type": title, "name": title, "value": student["metrics"][key]}
        for key, title in FIGURES.items()
        if key in student["metrics"]
    ]
    result = {"task": {"type": pipeline}, "dataset": {"name": data, "type": data, "split": "val"}, "metrics": scores}
    front: dict[str, Any] = {
        "license": LICENCE,
        "library_name": "ultralytics",
        "pipeline_tag": pipeline,
        "tags": ["yolo", "ultralytics", "yolo-mkd", "knowledge-distillation", pipeline],
        "model-index": [{"name": model_name(student["model"]), "results": [result]}],
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def accuracy_table(stages: Sequence[Stage]) -> str:
    """The accuracy of every stage's best checkpoint, as training measured it."""
    shown = {key: title for key, title in FIGURES.items() if key in stages[-1]["metrics"]}
    rows = [
        [
            stage["name"],
            plain(model_name(stage["model"])),
            f"{stage['parameters']:,}",
            *(f"{stage['metrics'][key]:.3f}" if key in stage["metrics"] else "" for key in shown),
        ]
        for stage in reversed(stages)
    ]
    return report.table(rows, ["model", "started from", "parameters", *shown.values()], markdown=True)


def exported(folder: Path) -> list[ParetoRow]:
    """The exported files of a run, from the reports in its folder; none without."""
    try:
        return joined(report_files([folder]))
    except BadInput:  # there are no reports
        return []


def latency_table(rows: Iterable[ParetoRow]) -> str:
    """Size, accuracy and latency of each exported file; empty without files."""
    cells = []
    for row in rows:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}"
        score = "" if row["map50_95"] is None else f"{row['map50_95']:.3f}"
        times = ["" if ms is None else f"{ms:.2f}" for ms in (row["p50_ms"], row["p90_ms"])]
        kind = " ".join(filter(None, (row["format"], row["precision"])))
        how = (row["runtime"] or "not timed") + (", drifting" if row["stable"] is False else "")
        cells.append([plain(row["name"]), kind, row["head"] or "", size, score, *times, how])
    headers = ["file", "format", "head", "MB", "mAP50-95", "p50 ms", "p90 ms", "timed with"]
    return report.table(cells, headers, markdown=True) if cells else ""


def data_lines(arguments: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """The data in sentences; counts and classes only while the data are there."""
    name = plain(Path(arguments["data"]).name)
    try:
        found = host.check_data(arguments["data"], fetch=False)
    except BadInput:
        lines = [f"{name}, which was not at its place when this card was written, so that nothing is counted here."]
    else:
        places = {s: found[s] if isinstance(found[s], list) else [found[s]] for s in ("train", "val")}
        count = {s: len({i for p in own for i in host.images_in(Path(p))}) for s, own in places.items()}
        classes = ", ".join(plain(c) for c in found["names"].values())
        lines = [
            f"{name}: {count['train']} images to train on and {count['val']} to validate on.",
            f"{found['nc']} classes: {classes}.",
        ]
        if arguments.get("fraction", 1) != 1:
            lines.append(f"Not all of these images were used: fraction={arguments['fraction']}.")
    if known.get("unlabelled"):
        frames = plain(Path(known["unlabelled"]).name)
        lines.append(f"Beside them images without labels ({frames}), for distillation alone.")
    return lines


def stage_line(stage: Stage) -> str:
    """One stage in a sentence."""
    origin = f"{stage['name']}: {plain(model_name(stage['model']))}, {stage['parameters']:,} parameters"
    teachers = " and ".join(plain(model_name(name)) for name in stage["hears"])  # a stage's name stays as it is
    how = f"distilled from {teachers}" if teachers else "trained without a teacher"
    return f"{origin}, {how}, {stage['seconds'] / 60:.1f} minutes."


def terms_table(known: dict[str, Any]) -> str:
    """The distillation terms that were asked for, with their figures; empty where there are none."""
    rows = [[name, MEANINGS.get(name, ""), f"{known[name]:g}"] for name in TERMS if known.get(name)]
    return report.table(rows, ["term", "what is compared", "figure"], markdown=True) if rows else ""


def digest_table(chain: Chain) -> str:
    """Every model of a chain with its file and SHA-256."""
    rows = [["teacher", plain(Path(t["file"]).name), t["sha256"]] for t in teacher_files(chain)]
    rows += [[s["name"], Path(s["weights"]).name, s["sha256"]] for s in chain["stages"]]
    return report.table(rows, ["model", "file", "SHA-256"], markdown=True)
