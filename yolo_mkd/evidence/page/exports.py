"""The exported files of a run: parity with their checkpoints, what each format costs and keeps, the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from yolo_mkd import documents, report
from yolo_mkd.deploy.pareto.rows import ParetoRow, join_reports, read_report, report_files, report_kind
from yolo_mkd.evidence.page.blocks import Chart, PageTable
from yolo_mkd.evidence.page.charts import Point, latency_chart, series
from yolo_mkd.evidence.page.schema import ExportLook
from yolo_mkd.evidence.page.worst import worst_images
from yolo_mkd.settings import BadInput

PLAN, PLAN_ADVICE = "plan.json", "give the file that yolo-mkd plan wrote with json="
WORST = 5  # images a file
PARITY = (
    "Matched one to one on validation images. Detections and unmatched ones are those of the checkpoint, then those of "
    "the file."
)


class PlanWarning(TypedDict):
    """One warning of a plan; without a stage it is about the whole run."""

    stage: str | None
    text: str


class PlanOnPage(TypedDict):
    """What a page shows of a plan."""

    answer: str
    warnings: list[PlanWarning]


def export_tables(folder: Path) -> list[PageTable]:
    """The tables of all reports of export, check, time and bundle below a folder; none without reports."""
    try:
        files = report_files([folder])
    except BadInput:  # there are none
        return []
    checked = checked_files(files)
    tables = [PageTable("Formats", HEADERS, [format_row(row) for row in joined(files)])]
    parity = [row for found in checked if (row := parity_row(found))]
    if parity:
        headers = ["file", "verdict", "detections", "unmatched", "lowest IoU", "largest score difference", "reason"]
        tables.append(PageTable("Parity with the checkpoint", headers, parity, PARITY))
    worst = [row for found in checked for row in worst_rows(found)]
    if worst:
        headers = ["image", "file", "unmatched", "lowest IoU", "largest score difference"]
        tables.append(PageTable("Worst images", headers, worst, "Those with most unmatched detections first."))
    return [table for table in tables if table.rows]


def worst_of(folder: Path) -> tuple[list[ExportLook], list[str]]:
    """The worst images of each exported file below a folder, and notes on files without; none without reports."""
    try:
        checked = checked_files(report_files([folder]))
    except BadInput:  # there are none
        return [], []
    return worst_images(folder, checked)


def checked_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Those of the reports that have the outcome of a check."""
    return [found for file in files if report_kind(found := read_report(file)) in {"export", "check"}]


def export_charts(folder: Path) -> list[Chart]:
    """The share of accuracy that each timed file keeps against its latency, a chart for each machine that timed."""
    try:
        rows = joined(report_files([folder]))
    except BadInput:  # there are no reports
        return []
    points: dict[str, list[Point]] = {}
    drifting: dict[str, list[str]] = {}
    for row in rows:
        if row["p50_ms"] is not None and row["retained"] is not None:
            own = points.setdefault(row["machine"], [])
            label = f"{row['name']}, {row['runtime']}"
            own.append(Point(label, series(len(own)), row["p50_ms"], row["p90_ms"], row["retained"]))
            if row["stable"] is False:
                drifting.setdefault(row["machine"], []).append(row["name"])
    notes = {place: f"Times that drifted: {', '.join(names)}." for place, names in drifting.items()}
    title = "Accuracy kept against latency"
    return [Chart(latency_chart(own), f"{title}: {place}", notes.get(place, "")) for place, own in points.items()]


HEADERS = ["file", "format", "head", "MB", "mAP50-95", "kept", "p50 ms", "p90 ms", "timed with"]


def joined(files: Sequence[Path]) -> list[ParetoRow]:
    """The rows of all reports; where they cannot be joined as a whole, those of each file alone."""
    try:
        return join_reports(files)["rows"]
    except BadInput:
        rows = []
        for file in files:
            try:
                rows += join_reports([file])["rows"]
            except BadInput:  # a log of trtexec has no SHA-256
                continue
        return rows


def format_row(row: ParetoRow) -> list[str]:
    """One exported file: what it costs and keeps."""
    size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}"
    kept = "" if row["retained"] is None else f"{row['retained']:.1%}"
    score = "" if row["map50_95"] is None else f"{row['map50_95']:.3f}"
    times = ["" if ms is None else f"{ms:.2f}" for ms in (row["p50_ms"], row["p90_ms"])]
    kind = " ".join(filter(None, (row["format"], row["precision"])))
    return [row["name"], kind, row["head"] or "", size, score, kept, *times, row["runtime"] or "not timed"]


def parity_row(found: dict[str, Any]) -> list[str]:
    """The outcome of one check; empty if it was not checked."""
    parity = found.get("parity")
    if not parity:
        return []
    detections = parity["detections"] or {}
    unmatched = f"{detections.get('checkpoint_unmatched', '')} + {detections.get('file_unmatched', '')}"
    pair = f"{detections.get('checkpoint_detections', '')} / {detections.get('file_detections', '')}"
    verdict = "passed" if parity["passed"] else "FAILED"
    return [str(found.get("file", "")), verdict, pair, unmatched, *extremes(detections), parity["reason"]]


def worst_rows(found: dict[str, Any]) -> list[list[str]]:
    """The images on which a file deviates most from its checkpoint."""
    detections = (found.get("parity") or {}).get("detections") or {}
    images = [image for image in detections.get("worst_images", []) if deviates(image)]
    return [
        [image["image"], str(found.get("file", "")), str(image.get("unmatched", 0)), *extremes(image)]
        for image in images[:WORST]
    ]


def deviates(image: dict[str, Any]) -> bool:
    """Whether the file's detections in an image are not exactly the checkpoint's."""
    return bool(image.get("unmatched")) or (image.get("min_iou") or 1) < 0.999


def extremes(figures: dict[str, Any]) -> list[str]:
    """The lowest IoU and the largest score difference, as text."""
    iou, score = figures.get("min_iou"), figures.get("max_score_difference")
    return ["" if iou is None else f"{iou:.4f}", "" if score is None else f"{score:.1e}"]


def add_plan(folder: Path, plan: Path) -> None:
    """Copy a plan into a run's folder, where the page finds it, also later.

    Raises:
        BadInput: the file is not a plan.
    """
    read_plan(plan, f"plan={plan}")
    report.write_text(folder / PLAN, plan.read_text(encoding="utf-8"))


def read_plan(file: Path, named: str) -> PlanOnPage:
    """What a page shows of a plan.

    Args:
        file: the plan's.
        named: how the message begins.

    Raises:
        BadInput: the file is not a plan, or damaged.
    """
    found = documents.read_json(file, named, PLAN_ADVICE)
    if report_kind(found) != "plan":
        raise BadInput(f"{named} is not a report of yolo-mkd plan: {PLAN_ADVICE}")
    plan: PlanOnPage = documents.validated(TypeAdapter(PlanOnPage), found, named, PLAN_ADVICE)
    return plan


def plan_warnings(folder: Path) -> tuple[list[str], str]:
    """The warnings of the plan in a run's folder, and where they come from or how to have them."""
    file = folder / PLAN
    if not file.is_file():
        return (
            [],
            "no plan in this folder: yolo-mkd plan with the arguments of the training and json=plan.json writes one, "
            "and yolo-mkd report with plan=plan.json adds it",
        )
    found = read_plan(file, str(file))
    lines = [f"{w['stage'] + ': ' if w['stage'] else ''}{w['text']}" for w in found["warnings"]]
    return lines, f"{found['answer']}"
