"""A Pareto document as text, Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolo_mkd import report
from yolo_mkd.deploy.pareto.rows import NOT_TIMED, ParetoDocument

COLUMNS = {  # field -> heading
    "name": "model",
    "format": "format",
    "precision": "precision",
    "head": "head",
    "runtime": "runtime",
    "parameters": "parameters",
    "bytes": "MB",
    "map50_95": "mAP50-95",
    "retained": "retained",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "mj_per_image": "mJ/image",
    "stable": "stable",
    "front": "front",
}
FORMATS: dict[str, Callable[[Any], str]] = {
    "bytes": lambda value: f"{value / 1e6:.2f}",
    "parameters": lambda value: f"{value:,}",
    "retained": lambda value: f"{value:.1%}",
    "map50_95": lambda value: f"{value:.4f}",
    "p50_ms": lambda value: f"{value:.2f}",
    "p90_ms": lambda value: f"{value:.2f}",
    "mj_per_image": lambda value: f"{value:.1f}",
    "stable": lambda value: "yes" if value else "no",
    "front": lambda value: "yes" if value else "",
}


def pareto_text(document: ParetoDocument) -> str:
    """The rows as aligned text, one block per machine."""
    return "\n\n".join(f"{machine}\n{table}" for machine, table in tables_by_machine(document, markdown=False))


def pareto_markdown(document: ParetoDocument) -> str:
    """The rows as Markdown, one table per machine."""
    return "\n\n".join(f"**{machine}**\n\n{table}" for machine, table in tables_by_machine(document, markdown=True))


def tables_by_machine(document: ParetoDocument, markdown: bool) -> list[tuple[str, str]]:
    """Each machine with the table of its rows, without the columns that are empty in the whole document."""
    columns = {
        key: title for key, title in COLUMNS.items() if any(field(row, key) is not None for row in document["rows"])
    }
    tables = []
    for machine in [*document["machines"], NOT_TIMED]:
        rows = [row for row in document["rows"] if row["machine"] == machine]
        cells = [[cell_text(key, field(row, key)) for key in columns] for row in rows]
        if cells:
            tables.append((machine, report.table(cells, list(columns.values()), markdown)))
    return tables


def field(row: Mapping[str, Any], key: str) -> Any:
    """A field of a row by its name."""
    return row[key]


def cell_text(key: str, value: Any) -> str:
    """The text of a cell; - where there is no value."""
    if value is None:
        return "-"
    return FORMATS[key](value) if key in FORMATS else str(value)


def write_csv(document: ParetoDocument, path: Path) -> Path:
    """Write all rows as CSV, whole or not at all."""
    with report.atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, [*COLUMNS, "machine", "sha256"], extrasaction="ignore")
        lines.writeheader()
        lines.writerows(document["rows"])
    return path
