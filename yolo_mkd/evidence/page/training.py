"""The page of a training: the chain, its curves, its gradient shares and what its models compute."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_mkd import chain as chains
from yolo_mkd import documents
from yolo_mkd.chain import Chain
from yolo_mkd.chain.stages import Stage
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.page.blocks import Chart, Node, Page, PageTable, Tab, Tile, millions
from yolo_mkd.evidence.page.charts import Line, line_chart, role_colour, series
from yolo_mkd.evidence.page.schema import Looks, ModelLook
from yolo_mkd.settings import KD_OPTIONS, BadInput, resolve

UNLABELLED = "Distillation also used images without labels, which training without a teacher cannot."
MOST_CLASSES = 3  # named at each end
MAP = "metrics/mAP50-95(B)"
Columns = dict[str, list[float]]


def training_page(folder: Path, chain: Chain, looks: Looks | None) -> Page:
    """The page of a chain, without its looks' pictures, exports and plan.

    Args:
        folder: the chain's.
        chain: the contents of its chain.yaml.
        looks: what its models compute; None without.
    """
    page = Page("training", folder.name, "")
    page.nodes = chain_nodes(chain, looks)
    answer(page, chain, looks)
    done = [s for s in chain["stages"] if s["status"] == "done"]
    levels = final_levels(chain, looks)
    for stage in done:
        place = folder / stage["name"]
        columns = csv_columns(place / "results.csv")
        page.tabs.append(Tab(stage["name"], stage_charts(stage["name"], columns, levels)))
        page.gradients += gradient_tabs(stage["name"], place / "shares.csv")
    page.tabs = [tab for tab in reversed(page.tabs) if tab.charts]
    page.gradients.reverse()
    page.command = command_of(chain)
    page.facts = [
        PageTable("Files", ["model", "file", "SHA-256"], file_rows(chain)),
        PageTable(
            "Made with",
            ["what", "version"],
            [["packages", ", ".join(f"{k} {v}" for k, v in chain["versions"].items())]],
        ),
    ]
    return page


def chain_nodes(chain: Chain, looks: Looks | None) -> list[Node]:
    """The models of the chain from the teacher to the student."""
    found = {m["role"]: m for m in looks["models"]} if looks else {}
    nodes = []
    stages = chain["stages"]
    if chain["teacher"]:
        teacher = found.get("teacher")
        nodes.append(("teacher", chain["teacher"]["file"], teacher["parameters"] if teacher else 0, teacher, "", ""))
    for stage in stages:
        names = ["teacher" if i == 0 else name for i, name in enumerate(stage["hears"])]
        minutes = f"{stage['seconds'] / 60:.1f} min" if "seconds" in stage else stage["status"]
        if "start" in stage:
            minutes += f", start={stage['start']} ({stage['taken']:.0%} of its weights from the teacher)"
        look = found.get(stage["name"])
        nodes.append((stage["name"], stage["model"], stage["parameters"], look, minutes, " and ".join(names)))
    largest = max((count for _, _, count, *_ in nodes), default=1) or 1
    scores: dict[str, float] = {s["name"]: s["metrics"]["map50_95"] for s in stages if "metrics" in s}
    return [
        Node(
            role.rstrip("0123456789"), role, short_name(file), millions(count) if count else "size unknown",
            round(max(0.28, math.sqrt(count / largest)), 3), score_text(look, scores.get(role)), minutes, teachers,
        )
        for role, file, count, look, minutes, teachers in nodes
    ]  # fmt: skip


def score_text(look: ModelLook | None, trained: float | None) -> str:
    """The mAP50-95 of a model: on the examined images, else the one that training measured, else nothing."""
    score = look.get("map50_95", trained) if look else trained
    return "" if score is None else f"{score:.3f}"


def short_name(file: str) -> str:
    """A model's file, with the name of its run where the file has a name that every run gives."""
    path = Path(file)
    if path.name in {"best.pt", "last.pt"} and len(path.parts) > 3:
        return f"{path.parts[-3]}/{path.name}"
    return path.name


def answer(page: Page, chain: Chain, looks: Looks | None) -> None:
    """Set the answer at the top: did distillation help, and where?"""
    models = {m["role"]: m for m in looks["models"]} if looks else {}
    student, teacher, plain = (models.get(role) for role in ("student", "teacher", "plain"))
    last = chain["stages"][-1]
    if looks is None or student is None or "map50_95" not in student:
        score = last.get("metrics", {}).get("map50_95")
        page.answer = (
            "The training has not finished." if score is None else f"The student reaches {score:.3f} mAP50-95."
        )
        page.caveat = "Whether distillation helped is not measured here."
        return
    ours = student["map50_95"]
    page.tiles.append(Tile(f"{ours:.3f}", "mAP50-95 of the student", f"mAP50 {student['map50']:.3f}"))
    if plain and "map50_95" in plain:
        change = ours - plain["map50_95"]
        page.answer = (
            f"The distilled student reaches {ours:.3f} mAP50-95, {change:+.3f} against the same student without a "
            "teacher."
        )
        page.caveat = (
            "One run of each. A difference without an interval is not evidence: yolo-mkd compare measures one over "
            "several seeds."
        )
        if chain["knowledge"].get("unlabelled"):
            page.caveat += f" {UNLABELLED}"
        page.tiles.append(
            Tile(f"{change:+.3f}", "against the plain student", f"plain {plain['map50_95']:.3f}, one seed")
        )
    elif teacher and teacher.get("map50_95"):
        page.answer = (
            f"The student keeps {ours / teacher['map50_95']:.0%} of the teacher's mAP50-95 "
            f"with {student['parameters'] / teacher['parameters']:.0%} of its parameters."
        )
        page.caveat = (
            "Whether distillation helped cannot be read from one training: name the same student trained without a "
            "teacher (plain=), or run yolo-mkd compare for a difference with an interval."
        )
    else:
        page.answer = f"The student reaches {ours:.3f} mAP50-95."
        page.caveat = "No teacher and no plain student can be compared with it on this data."
    if looks["examined"] < looks["val_images"]:
        page.caveat += f" Measured on {looks['examined']} of {looks['val_images']} validation images."
    if teacher and teacher.get("map50_95"):
        kept = f"{ours / teacher['map50_95']:.0%}"
        page.tiles.append(Tile(kept, "of the teacher's mAP50-95", f"teacher {teacher['map50_95']:.3f}"))
    if teacher and teacher["parameters"] > student["parameters"]:
        smaller = teacher["parameters"] / student["parameters"]
        sizes = f"{millions(teacher['parameters'])} to {millions(student['parameters'])}"
        page.tiles.append(Tile(f"{smaller:.1f}x", "smaller than the teacher", sizes))
    minutes = sum(s.get("seconds", 0) for s in chain["stages"]) / 60
    stages = len(chain["stages"])
    page.tiles.append(Tile(f"{minutes:.1f} min", "of training", f"{stages} stage{'s' if stages > 1 else ''}"))
    page.where = where_it_helped(looks)


def where_it_helped(looks: Looks) -> list[str]:
    """Where the student differs from the reference: objects found or missed, classes, hidden layers."""
    models = {m["role"]: m for m in looks["models"]}
    reference, student, count = models[looks["reference"]], models["student"], looks["tally"]
    found = []
    if reference["role"] != "student":
        line = (
            f"Objects at confidence {looks['conf']}: {count['won']} found by the student and missed by the "
            f"{reference['label']}, {count['lost']} the other way round, of {count['objects']} in {looks['examined']} "
            "images"
        )
        if "false_detections" in student and "false_detections" in reference:
            line += f"; false detections: {student['false_detections']} against {reference['false_detections']}"
        found.append(f"{line}.")
        changes = [f"{name} {change:+.3f}" for name, change in class_changes(reference, student)]
        if len(changes) > 2 * MOST_CLASSES:
            changes = [*changes[:MOST_CLASSES], "...", *changes[-MOST_CLASSES:]]
        if changes:
            found.append(f"Classes: {', '.join(changes)} AP50-95 against the {reference['label']}.")
    before = models.get("plain") or models.get("start")
    if before and before.get("attention"):
        gains = {n: student["attention"][n] - before["attention"][n] for n in looks["layers"]}
        nearer = [f"{layer_name(n)} {gain:+.2f}" for n, gain in gains.items() if gain > 0]
        most = max(gains, key=gains.__getitem__)
        found.append(
            f"Hidden layers: attention maps are nearer to the teacher's than the {before['label']}'s in {len(nearer)} "
            f"of {len(gains)} layers, most in {layer_name(most)} ({gains[most]:+.2f} correlation)."
        )
    return found


def class_changes(reference: ModelLook, student: ModelLook) -> list[tuple[str, float]]:
    """The change of AP50-95 of each class from the reference to the student, the largest first."""
    ours, theirs = student.get("classes", {}), reference.get("classes", {})
    changes = [(name, ap - theirs[name]) for name, ap in ours.items() if name in theirs]
    return sorted(changes, key=lambda c: -c[1])


def layer_name(role: str) -> str:
    """A layer's role for people: `backbone_p3` is backbone P3."""
    part, _, level = role.partition("_")
    return f"{part} {level.upper()}"


def final_levels(chain: Chain, looks: Looks | None) -> list[Line]:
    """The final accuracy of every model, as levels of the accuracy chart."""
    if looks:
        return [
            Line(f"{m['label']}", role_colour(m["role"]), [], [m["map50_95"]], level=True)
            for m in looks["models"]
            if "map50_95" in m
        ]
    done = [s for s in chain["stages"] if "metrics" in s]
    return [Line(s["name"], role_colour(s["name"]), [], [s["metrics"]["map50_95"]], level=True) for s in done]


def stage_charts(stage: str, columns: Columns, levels: Sequence[Line]) -> list[Chart]:
    """Accuracy, detection loss and distillation losses of a stage over its epochs, where there are values."""
    epochs = columns.get("epoch", [])
    own = [Line(f"{stage}, each epoch", role_colour(stage), epochs, columns[MAP])] if columns.get(MAP) else []
    losses = [
        Line(f"{part} {kind}", series(i + 3 * (split == "val")), epochs, columns[f"{split}/{kind}"])
        for split, part in (("train", "train"), ("val", "val"))
        for i, kind in enumerate(["box_loss", "cls_loss"])
        if columns.get(f"{split}/{kind}")
    ]
    terms = [n for n in columns if n.startswith("kd/") and n != "kd/weight"]
    knowledge = [Line(n.removeprefix("kd/"), series(i), epochs, columns[n]) for i, n in enumerate(terms)]
    weight = columns.get("kd/weight", [])
    taught = sum(w > 0 for w in weight)
    drawn = [
        Chart(line_chart([*own, *levels], "mAP50-95"), "Accuracy", "Dashed: the final checkpoints."),
        Chart(line_chart(losses, "loss"), "Detection loss", "Of training and validation."),
        Chart(
            line_chart(knowledge, "loss of each term"),
            "Distillation losses",
            f"Distillation was on in {taught} of {len(weight)} epochs; a term is 0 where it is off.",
        ),
    ]
    return [chart for chart in drawn if chart.svg]


def gradient_tabs(stage: str, file: Path) -> list[Tab]:
    """Each term's share of the gradient and its angle, a tab for each teacher of a stage."""
    rows = csv_rows(file)
    tabs = []
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        own = [row for row in rows if row["teacher"] == teacher]
        shares, cosines = [], []
        for i, term in enumerate(dict.fromkeys(row["term"] for row in own)):
            points = [row for row in own if row["term"] == term]
            epochs = [float(row["epoch"]) for row in points]
            acted = [float(row["share"]) * float(row["weight"]) for row in points]
            shares.append(Line(term, series(i), epochs, acted))
            cosines.append(Line(term, series(i), epochs, [float(row["cosine"]) for row in points]))
        charts = [
            Chart(
                line_chart(shares, "share of the detection gradient", log=True),
                "Gradient share",
                "Length of each term's gradient over that of the detection loss, as it acted.",
            ),
            Chart(
                line_chart(cosines, "cosine", zero=True),
                "Direction",
                "Cosine of the angle to the detection gradient: below 0 a term opposes the task.",
            ),
        ]
        tabs.append(Tab(f"{stage} from {teacher.split('/')[0]}", charts))
    return tabs


def csv_columns(file: Path) -> Columns:
    """The columns of a CSV file of numbers; empty without a file. A value that is missing or not finite is left out."""
    rows = [{k.strip(): v for k, v in row.items() if k} for row in csv_rows(file)]
    names = list(rows[0]) if rows else []
    return {n: values for n in names if len(values := finite(row.get(n) for row in rows)) == len(rows)}


def csv_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, none without it.

    Raises:
        BadInput: it is not text.
    """
    if not file.is_file():
        return []
    text = documents.read_text(file, str(file), "restore it from a copy, or remove it")
    return list(csv.DictReader(io.StringIO(text)))


def finite(values: Any) -> list[float]:
    """The finite numbers among values read from a file."""
    found = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError):  # an empty cell
            continue
        if math.isfinite(number):
            found.append(number)
    return found


def command_of(chain: Chain) -> str:
    """The command line that makes a chain of the same settings."""
    known = chain["knowledge"]
    try:
        usual: Mapping[str, Any] = resolve({"preset": known.get("preset")} if known.get("preset") else {})
    except BadInput:  # a preset of an earlier version
        usual = {}
    stages = chain["stages"]
    words: dict[str, Any] = {"model": stages[-1]["model"]}
    own = chain["teacher"]["file"] if chain["teacher"] else stages[0]["model"]
    words["teacher"] = own
    assistants = [s["model"] for s in stages if s["name"].startswith("assistant")]
    words["assistant"] = ",".join(assistants) or "none"
    if "start" in stages[-1]:
        words["start"] = stages[-1]["start"]
    if chain["teacher_epochs"]:
        words["teacher_epochs"] = chain["teacher_epochs"]
    if known.get("preset"):
        words["preset"] = known["preset"]
    changed = {n: known[n] for n in (*KD_OPTIONS, *TERMS) if n in known and n != "preset"}
    words |= {n: value for n, value in changed.items() if value != usual.get(n)}
    words |= chain["arguments"]
    return " ".join(["yolo-mkd", "train", *(f"{k}={shlex.quote(written(v))}" for k, v in words.items())])


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def file_rows(chain: Chain) -> list[list[str]]:
    """Every model of a chain with its file and its SHA-256."""
    rows = [["teacher", chain["teacher"]["file"], chain["teacher"]["sha256"]]] if chain["teacher"] else []
    return rows + [stage_row(s) for s in chain["stages"] if s["status"] == "done"]


def stage_row(stage: Stage) -> list[str]:
    """A finished stage with its checkpoint."""
    return [stage["name"], chains.shortest(stage["weights"]), stage["sha256"]]
