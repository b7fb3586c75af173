"""Rows of accuracy and latency, joined from reports by the SHA-256 of the file that they are about."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from pydantic import TypeAdapter

from yolo_mkd import documents
from yolo_mkd.deploy.pareto.schema import BundleReport, FileReport, TimedReport
from yolo_mkd.settings import BadInput

KINDS = ("export", "check", "time", "bundle")
NOT_TIMED = "not timed"
LEAVE_OUT = "leave it out of reports="
READ: dict[str, TypeAdapter[Any]] = {  # what is read of each kind
    "export": TypeAdapter(FileReport),
    "check": TypeAdapter(FileReport),
    "time": TypeAdapter(TimedReport),
    "bundle": TypeAdapter(BundleReport),
}


class ParetoRow(TypedDict):
    """One file on one machine; None where no report states the value."""

    name: str
    format: str | None
    precision: str | None
    head: str | None
    parameters: int | None
    bytes: int | None
    map50_95: float | None
    retained: float | None  # of its checkpoint's mAP
    source: str | None  # SHA-256 of the checkpoint
    runtime: str | None
    p50_ms: float | None  # end to end
    p90_ms: float | None
    mj_per_image: float | None
    stable: bool | None
    machine: str
    sha256: str
    front: bool  # no other row of the machine is better in one of latency and accuracy, and as good in the other


class ParetoDocument(TypedDict):
    """What `pareto` returns and writes."""

    rows: list[ParetoRow]
    machines: list[str]  # in the order of the rows


class ModelFacts(TypedDict, total=False):
    """What all reports on one file state about it."""

    path: Path  # of the first report
    file: str
    bytes: int
    head: str
    parameters: int
    format: str
    precision: str
    map50_95: float
    retained: float
    images: int
    classes: list[str]
    source: str


TimeKey = tuple[str, str, str]  # SHA-256, machine, runtime


def join_reports(reports: Sequence[str | Path]) -> ParetoDocument:
    """Join reports into rows, one for each file on each machine, and mark the Pareto front of each machine.

    Raises:
        BadInput: a report cannot be read or joined, one file was timed twice under the same conditions, or mAP was
            measured on different images.
    """
    facts: dict[str, ModelFacts] = {}
    times: dict[TimeKey, dict[str, Any]] = {}
    for path in report_files(reports):
        found = read_report(path)
        digest = found["model"]["sha256"] if report_kind(found) == "bundle" else found["sha256"]
        known = facts.setdefault(digest, {"path": path})
        known.update(model_facts(found))
        if report_kind(found) == "time":
            key = (digest, machine_label(found), runtime_label(found))
            if key in times:
                raise BadInput(f"{path} and {times[key]['path']} time one file on the same machine: keep one of them")
            times[key] = {"path": path, **found}
    validate_same_images(facts.values())
    names = unique_names(facts)
    rows = [pareto_row(names[key[0]], key[0], facts[key[0]], found) for key, found in times.items()]
    timed = {key[0] for key in times}
    rows += [pareto_row(names[digest], digest, known, None) for digest, known in facts.items() if digest not in timed]
    mark_front(rows)
    rows.sort(key=lambda r: (r["machine"] == NOT_TIMED, r["machine"], r["p50_ms"] or 0.0))
    machines = list(dict.fromkeys(r["machine"] for r in rows if r["machine"] != NOT_TIMED))
    return {"rows": rows, "machines": machines}


def report_files(reports: Sequence[str | Path]) -> list[Path]:
    """The named report files, and all reports in the named folders; each once.

    Raises:
        BadInput: none is found.
    """
    found: list[Path] = []
    for path in map(Path, reports):
        inside = sorted(path.rglob("*.json")) if path.is_dir() else []
        found += [p for p in inside if is_report(p)] if path.is_dir() else [path]
    if not found:
        raise BadInput("reports= contains no reports: make some with yolo-mkd export and yolo-mkd time")
    return list({p.resolve(): p for p in found}.values())


def is_report(path: Path) -> bool:
    """Whether a JSON file in a folder is a report that can be joined."""
    try:
        return report_kind(json.loads(path.read_text(encoding="utf-8"))) in KINDS
    except (OSError, ValueError, RecursionError):
        return False


def read_report(path: Path) -> dict[str, Any]:
    """Read one report.

    Raises:
        BadInput: it is missing, damaged, or of another kind.
    """
    found = documents.read_json(path, str(path), LEAVE_OUT)
    if report_kind(found) not in KINDS:
        raise BadInput(f"{path} is not a report of {', '.join(KINDS)}: leave it out of reports=")
    if report_kind(found) != "bundle" and not found.get("sha256"):
        raise BadInput(
            f"{path} does not state its file's SHA-256 and cannot be joined (trtexec's log has none): leave it out"
        )
    report: dict[str, Any] = documents.validated(READ[report_kind(found)], found, str(path), LEAVE_OUT)
    return report


def report_kind(found: Any) -> str:
    """The command that wrote a report, from its schema; empty for other JSON files."""
    parts = str(found.get("schema")).split("/") if isinstance(found, dict) else []
    return parts[1] if len(parts) == 3 and parts[0] == "yolo-mkd" else ""


def model_facts(found: dict[str, Any]) -> ModelFacts:
    """What a report of any kind states about its file."""
    stated = found
    if report_kind(found) == "bundle":
        stated = found["model"] | {"head": found["head"], "source": found["source"], "format": "onnx"}
        stated["accuracy"], stated["names"] = found["reference"], dict(enumerate(found["names"]))
    accuracy = stated.get("accuracy") or {}
    keys = ["file", "bytes", "head", "parameters"]
    if report_kind(found) != "time":  # an engine's report has the SHA-256 of the ONNX file that it was built from
        keys += ["format", "precision"]
    facts: dict[str, Any] = {key: stated.get(key) for key in keys}
    facts |= {key: accuracy.get(key) for key in ("map50_95", "retained", "images")}
    facts["classes"] = sorted(stated["names"].values()) if isinstance(stated.get("names"), dict) else None
    facts["source"] = (stated.get("source") or {}).get("sha256")
    return cast(ModelFacts, {key: value for key, value in facts.items() if value is not None})


def machine_label(found: dict[str, Any]) -> str:
    """The machine that timed, with its power mode; only latencies with the same label are compared."""
    mode = (found.get("device") or {}).get("power_mode")
    place = found["machine"]
    return f"{place['processor']}, {place['cores']} cores" + (f", {mode}" if mode else "")


def runtime_label(found: dict[str, Any]) -> str:
    """The runtime that ran the file, with its number of threads."""
    threads = found.get("threads")
    return found["provider"].removesuffix("ExecutionProvider") + (f" x{threads}" if threads else "")


def validate_same_images(facts: Iterable[ModelFacts]) -> None:
    """Raise BadInput where mAP was measured on different classes or numbers of labelled images."""
    known = [f for f in facts if "map50_95" in f]
    for label, seen in (
        ("classes", {str(f["classes"]): f["path"] for f in known if "classes" in f}),
        ("numbers of images", {str(f["images"]): f["path"] for f in known if "images" in f}),
    ):
        if len(seen) > 1:
            first, second = list(seen.values())[:2]
            raise BadInput(f"mAP in {first} and {second} is of different {label}: check both with the same data=")


def unique_names(facts: dict[str, ModelFacts]) -> dict[str, str]:
    """A name for each file: its file name, and for equal ones the folder that differs, else the start of the hash."""
    files = {digest: known.get("file") or digest[:8] for digest, known in facts.items()}
    count = Counter(files.values())
    labels = {}
    for digest, file in files.items():
        own = facts[digest]["path"].resolve().parent.parts
        others = [facts[d]["path"].resolve().parent.parts for d, f in files.items() if f == file and d != digest]
        apart = [part for part in own if not any(part in other for other in others)]
        labels[digest] = f"{apart[-1]}/{file}" if count[file] > 1 and apart else file
    doubled = Counter(labels.values())
    return {digest: f"{label} {digest[:6]}" if doubled[label] > 1 else label for digest, label in labels.items()}


def pareto_row(name: str, digest: str, known: ModelFacts, timed: dict[str, Any] | None) -> ParetoRow:
    """One row; its place on the front is not known yet.

    Args:
        name: of the file.
        digest: its SHA-256.
        known: what the reports state about it.
        timed: its time report on one machine, if any.
    """
    row: ParetoRow = {
        "name": name,
        "format": known.get("format"),
        "precision": known.get("precision"),
        "head": known.get("head"),
        "parameters": known.get("parameters"),
        "bytes": known.get("bytes"),
        "map50_95": known.get("map50_95"),
        "retained": known.get("retained"),
        "source": known.get("source"),
        "runtime": None,
        "p50_ms": None,
        "p90_ms": None,
        "mj_per_image": None,
        "stable": None,
        "machine": NOT_TIMED,
        "sha256": digest,
        "front": False,
    }
    if timed is not None:
        total, power = timed["segments"]["end_to_end"], (timed.get("device") or {}).get("power")
        row["format"] = timed.get("format") or row["format"]
        row["precision"] = timed.get("precision") or row["precision"]
        row["runtime"] = runtime_label(timed)
        row["p50_ms"], row["p90_ms"] = total["p50_ms"], total["p90_ms"]
        row["mj_per_image"] = power["mj_per_image"] if power else None
        row["stable"] = timed["drift"]["stable"]
        row["machine"] = machine_label(timed)
    return row


def has_both_axes(row: ParetoRow) -> bool:
    """Whether a row has both a latency and an mAP."""
    return row["p50_ms"] is not None and row["map50_95"] is not None


def mark_front(rows: list[ParetoRow]) -> None:
    """Set `front` of each row that no other row of its machine dominates.

    A row dominates another if it is at least as fast and as accurate, and better in one of both. Accuracy counts to
    four decimals, as it is printed: two exports of one checkpoint differ in the fifth by rounding.
    """
    points = [(r["machine"], r["p50_ms"], rounded_map(r)) for r in rows if has_both_axes(r)]
    for row in rows:
        own = (row["machine"], row["p50_ms"], rounded_map(row))
        row["front"] = has_both_axes(row) and not any(dominates(other, own) for other in points)


def rounded_map(row: ParetoRow) -> float:
    """The mAP of a row to four decimals; 0 without one."""
    return round(row["map50_95"] or 0.0, 4)


def dominates(other: tuple[str, Any, float], own: tuple[str, Any, float]) -> bool:
    """Whether a point (machine, latency, accuracy) is at least as good as another of its machine, and better in one."""
    return other[0] == own[0] and other[1] <= own[1] and other[2] >= own[2] and other != own
