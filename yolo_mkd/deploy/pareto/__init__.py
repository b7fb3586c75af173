"""Cost and accuracy of models over many reports: one table, one picture, and the Pareto front.

Reports of export, check, time and bundle are joined by the SHA-256 of their file. Machines are kept separate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yolo_mkd import report
from yolo_mkd.deploy.pareto.picture import draw_pareto
from yolo_mkd.deploy.pareto.rows import ParetoDocument, ParetoRow, has_both_axes, join_reports
from yolo_mkd.deploy.pareto.tables import pareto_markdown, write_csv
from yolo_mkd.settings import file_path, split_commas

__all__ = ["ParetoDocument", "ParetoRow", "pareto", "write_pareto"]


def pareto(reports: str | Sequence[str | Path], out: str | Path | None = None) -> ParetoDocument:
    """Join reports into rows, one for each file on each machine, and mark the Pareto front of each machine.

    Args:
        reports: JSON reports of export, check, time and bundle, or folders of them; a list, or separated by commas.
        out: a folder for pareto.json, .md, .csv and .png.

    Returns:
        `rows` by machine, then by latency: name, format, precision, head, runtime, parameters, bytes, map50_95,
        retained (of its checkpoint's mAP), p50_ms and p90_ms (end to end), mj_per_image, stable, front, machine,
        source and sha256; None where no report states the value. `machines`: in the order of the rows.

    Raises:
        BadInput: a report cannot be read or joined, one file was timed twice under the same conditions, or mAP was
            measured on different images.
    """
    named = split_commas(reports) if isinstance(reports, str) else reports
    places = named if isinstance(named, list | tuple) else [named]
    folder = None if out is None else file_path("out", out, "pareto")
    document = join_reports([file_path("reports", place, "runs/mkd") for place in places])
    if folder is not None:
        write_pareto(document, folder)
    return document


def write_pareto(document: ParetoDocument, folder: Path) -> list[Path]:
    """Write pareto.json, .md, .csv and, where a row has both a latency and an mAP, .png into a folder."""
    written = [
        report.write(folder / "pareto.json", "pareto", dict(document)),
        report.write_text(folder / "pareto.md", pareto_markdown(document) + "\n"),
        write_csv(document, folder / "pareto.csv"),
    ]
    if any(has_both_axes(row) for row in document["rows"]):
        written.append(draw_pareto(document, folder / "pareto.png"))
    return written
