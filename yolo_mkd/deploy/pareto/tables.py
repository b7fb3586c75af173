"""A document of pareto as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.deploy.pareto import NOT_TIMED, drawable
from yolo_mkd.deploy.pareto.picture import picture

COLUMNS = {  # field -> heading
    "name": "model", "format": "format", "precision": "precision", "head": "head", "runtime": "runtime",
    "parameters": "parameters", "bytes": "MB", "map50_95": "mAP50-95", "retained": "kept", "p50_ms": "p50 ms",
    "p90_ms": "p90 ms", "mj_per_image": "mJ/image", "stable": "stable", "front": "front",
}  # fmt: skip


def write(document: dict[str, Any], out: str | Path) -> list[Path]:
    """Write a document as pareto.json, .md, .csv and, where anything was timed and has an mAP, .png into a folder."""
    folder = Path(out)
    written = [report.write(folder / "pareto.json", "pareto", document), folder / "pareto.md", folder / "pareto.csv"]
    written[1].write_text(markdown(document) + "\n", encoding="utf-8")
    with written[2].open("w", encoding="utf-8", newline="") as file:
        fields = [*COLUMNS, "machine", "sha256"]
        lines = csv.DictWriter(file, fields, extrasaction="ignore")
        lines.writeheader()
        lines.writerows(document["rows"])
    if any(drawable(r) for r in document["rows"]):
        written.append(picture(document, folder / "pareto.png"))
    return written


def cell(key: str, value: Any) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no" if key == "stable" else ""
    written = {"bytes": lambda v: f"{v / 1e6:.2f}", "parameters": lambda v: f"{v:,}", "retained": lambda v: f"{v:.1%}"}
    written |= {"map50_95": lambda v: f"{v:.4f}", "p50_ms": lambda v: f"{v:.2f}", "p90_ms": lambda v: f"{v:.2f}"}
    written |= {"mj_per_image": lambda v: f"{v:.1f}"}
    return written[key](value) if key in written else str(value)


def shown(document: dict[str, Any]) -> dict[str, str]:
    """The columns that say anything: field -> heading."""
    return {k: title for k, title in COLUMNS.items() if any(r[k] is not None for r in document["rows"])}


def table(document: dict[str, Any]) -> str:
    """The rows as aligned text, one block a machine."""
    columns, blocks = shown(document), []
    for place in [*document["machines"], NOT_TIMED]:
        lines = [[cell(k, r[k]) for k in columns] for r in document["rows"] if r["machine"] == place]
        if lines:
            widths = [max(map(len, column)) for column in zip(columns.values(), *lines, strict=True)]
            text = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in [list(columns.values()), *lines])
            blocks.append("\n".join([place, *text]))
    return "\n\n".join(blocks)


def markdown(document: dict[str, Any]) -> str:
    """The rows as Markdown, one table a machine."""
    columns, blocks = shown(document), []
    for place in [*document["machines"], NOT_TIMED]:
        lines = [[cell(k, r[k]) for k in columns] for r in document["rows"] if r["machine"] == place]
        if lines:
            head = [list(columns.values()), ["---"] * len(columns)]
            blocks.append(
                "\n".join([f"**{place}**", "", *("| " + " | ".join(line) + " |" for line in [*head, *lines])])
            )
    return "\n\n".join(blocks)
