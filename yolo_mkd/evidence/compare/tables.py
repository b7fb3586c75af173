"""The tables of a comparison: text for the terminal, a Markdown page and a CSV file, all made from compare.json."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from yolo_mkd import report
from yolo_mkd.evidence.compare.findings import FURTHER, NMS_FREE, TASK_FIGURES
from yolo_mkd.evidence.compare.schema import Comparison, Difference, Figure, MeanRow, Ratio, Row
from yolo_mkd.evidence.compare.statistics import UNCLEAR

FIGURE = "map50_95"
MOST_CLASSES = 12  # rows of the class table that a terminal is shown
WIDTH = 100  # of a terminal's text
NAME_LENGTH = 40  # of a method in a plot
TEXT_NAME_LENGTH = 32  # of a method in a terminal's table
TIME_COLUMNS = {  # of compare.csv, by accuracy: cost [s] and images until plain's final accuracy is reached for good
    FIGURE: ("to_plain_cost_s", "to_plain_images"),
    NMS_FREE: ("nms_free_to_plain_cost_s", "nms_free_to_plain_images"),
}
MEAN_MISSING = "seeds do not everywhere hold"
CLASS_CAPTION = "mAP50-95 of each class: plain's, and each method's difference, starred where its interval excludes 0."


class Table(NamedTuple):
    """Cells as text, a list a row, under their headers."""

    headers: list[str]
    rows: list[list[str]]


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Accuracy and cost of each method on one data set with one student."""
    headers = ["method", "seeds", "mAP50-95", "last", "mAP50", "epochs", "train s", "cost"]
    cells = []
    for row in rows:
        if not row["seeds"]:
            cells.append([row["method"], "0", "FAILED", *[""] * (len(headers) - 3)])
            continue
        cells.append(
            [
                row["method"],
                str(len(row["seeds"])),
                mean_text(row["map50_95"]),
                f"{row['last_map50_95']['mean']:.3f}",
                f"{row['map50']['mean']:.3f}",
                f"{row['epochs']:g}",
                f"{row['train_s']:.0f}",
                cost_text(row["cost"]),
            ]
        )
    return Table(headers, cells)


def difference_table(rows: Sequence[Row] | Sequence[MeanRow], references: Sequence[str], figure: str = FIGURE) -> Table:
    """The difference of each method from each reference, with its interval; without rows if there are none.

    Args:
        rows: of one data set and student, or means.
        references: a column each.
        figure: that is compared.
    """
    headers = ["difference", *(f"vs {other} [95 %]" for other in references)]
    cells = []
    for row in rows:
        against = row.get("against", {})
        if any(against.get(other, {}).get(figure) for other in references):
            cells.append([row["method"], *(difference_text(against.get(o, {}).get(figure)) for o in references)])
    return Table(headers, cells)


def full_table(rows: Sequence[Row], references: Sequence[str]) -> Table:
    """Accuracy, differences and cost in one table, too wide for most terminals."""
    headers, cells = accuracy_table(rows)
    split = headers.index("epochs")
    headers = [*headers[:split], *(f"vs {other} [95 %]" for other in references), *headers[split:]]
    full = []
    for row, own in zip(rows, cells, strict=True):
        against = row.get("against", {})
        changes = [difference_text(against.get(other, {}).get(FIGURE)) for other in references]
        full.append([*own[:split], *changes, *own[split:]])
    return Table(headers, full)


def mean_table(rows: Sequence[MeanRow], references: Sequence[str]) -> Table:
    """The mean of each method over data sets and students."""
    headers = ["method", "mAP50-95", *(f"vs {other} [95 %]" for other in references), "cost"]
    cells = []
    for row in rows:
        changes = [difference_text(row["against"].get(other, {}).get(FIGURE)) for other in references]
        cells.append([row["method"], f"{row['map50_95']:.3f}", *changes, cost_text(row["cost"])])
    return Table(headers, cells)


def further_table(rows: Sequence[Row] | Sequence[MeanRow], references: Sequence[str], figure: str) -> Table:
    """The accuracy without NMS, of masks or of keypoints; without rows if no student has such a head.

    Args:
        rows: of one data set and student, or means.
        references: a column each.
        figure: one of `FURTHER`.
    """
    headers = [FURTHER[figure], "mAP50-95", *(f"vs {other} [95 %]" for other in references)]
    cells = []
    for row in rows:
        if figure in row:
            changes = [difference_text(row["against"].get(other, {}).get(figure)) for other in references]
            cells.append([row["method"], mean_text(row[figure]), *changes])  # type: ignore[literal-required]
    return Table(headers, cells)


def class_table(rows: Sequence[Row]) -> Table:
    """Plain's mAP50-95 of each class and every other method's difference, starred where its interval excludes 0."""
    plain = next((r for r in rows if r["method"] == "plain" and r["seeds"]), None)
    others = [r for r in rows if r["method"] != "plain" and r["seeds"]]
    headers = ["class", "plain", *(r["method"] for r in others)]
    if plain is None or not others:
        return Table(headers, [])
    cells = []
    for name, figure in plain["classes"].items():
        changes = [r["classes"][name]["change"] if name in r["classes"] else None for r in others]
        cells.append([name, f"{figure['mean']:.3f}", *map(starred_text, changes)])
    return Table(headers, cells)


def time_table(rows: Sequence[Row] | Sequence[MeanRow], figure: str = FIGURE) -> Table:
    """The time of each method to plain's final accuracy; without rows if no run has a curve.

    Args:
        rows: of one data set and student, or means.
        figure: the accuracy that counts.
    """
    headers = ["to plain's accuracy" + (" without NMS" if figure == NMS_FREE else ""), "mAP50-95", "reached"]
    headers += ["cost x plain [95 %]", "images x plain [95 %]"]
    cells = []
    for row in rows:
        if found := row.get("to_plain", {}).get(figure):
            reached = f"{len(found['reached'])} of {len(found['reached']) + len(found['missed'])}"
            ratios = [ratio_text(found["cost"]), ratio_text(found["images"])]
            cells.append([row["method"], f"{found['target']:.3f}", reached, *ratios])
    return Table(headers, cells)


def ratio_text(found: Ratio) -> str:
    """A ratio with its interval, or as a lower bound."""
    if found["bound"]:
        return f"at least {found['mean']:.2f}"
    if found["low"] is None or found["high"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def time_lines(
    rows: Sequence[Row] | Sequence[MeanRow], figure: str = FIGURE, missing: str = "runs never hold"
) -> list[str]:
    """A line for each method that has an interval or never reaches plain's final accuracy in some run.

    Args:
        rows: of one data set and student, or means.
        figure: the accuracy that counts.
        missing: what is counted where it is never reached.
    """
    lines = []
    for row in rows:
        found = row.get("to_plain", {}).get(figure)
        if not found or row["method"] == "plain":
            continue
        if missed := found["missed"]:
            total = len(missed) + len(found["reached"])
            lines.append(f"{row['method']}: {len(missed)} of {total} {missing} plain's final accuracy")
        elif found["cost"]["low"] is not None:
            verdict = found["cost"]["verdict"]
            lines.append(f"{row['method']}: {verdict} {'from' if verdict == UNCLEAR else 'than'} plain to its accuracy")
    return lines


def cost_text(cost: float | None) -> str:
    """The cost of training as a multiple of plain's."""
    return "-" if cost is None else f"{cost:.2f}"


def mean_text(figure: Figure | float) -> str:
    """A mean, with its standard deviation over the seeds if there is one."""
    if isinstance(figure, float):
        return f"{figure:.3f}"
    return f"{figure['mean']:.3f}" + (f" ± {figure['deviation']:.3f}" if figure["deviation"] is not None else "")


def difference_text(found: Difference | None) -> str:
    """A difference with its interval; empty for None."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def starred_text(found: Difference | None) -> str:
    """A difference without its interval, starred if that excludes 0; empty for None."""
    if found is None:
        return ""
    return f"{found['mean']:+.3f}" + ("*" if found["verdict"] in {"better", "worse"} else "")


def verdict_lines(rows: Sequence[Row] | Sequence[MeanRow], figure: str = FIGURE) -> list[str]:
    """A line for each method: better or worse than a reference, or not distinguishable from it."""
    verdicts = {row["method"]: verdict_text(row["against"], figure) for row in rows if row.get("against")}
    return [f"{method}: {verdict}" for method, verdict in verdicts.items() if verdict]


def verdict_text(against: Mapping[str, Mapping[str, Difference | None]], figure: str) -> str:
    """The verdicts of one method on its references; empty without an interval."""
    references: dict[str, list[str]] = {}
    for other, changes in against.items():
        if (found := changes.get(figure)) and found["low"] is not None:
            references.setdefault(found["verdict"], []).append(other)
    return ", ".join(
        f"{verdict} {'from' if verdict == UNCLEAR else 'than'} {' and '.join(others)}"
        for verdict, others in references.items()
    )


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by data set and student, under a title that names both."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['student']} on {row['data']}", []).append(row)
    return found


def shorten(method: str, most: int = NAME_LENGTH) -> str:
    """A method's name, without its middle if it is longer than `most` characters."""
    return method if len(method) <= most else f"{method[: most // 2 - 1]}...{method[-most // 2 + 2 :]}"


def latency_lines(comparison: Comparison) -> list[str]:
    """The latency of each exported student, a line each."""
    lines = []
    for found in comparison["latency"]:
        student = f"{found['student']} on {found['data']}"
        if "why_not" in found:
            lines.append(f"{student}: not exported: {found['why_not']}")
        else:
            unstable = "" if found["stable"] else "; NOT STABLE: time it again on an idle machine"
            how = f"as ONNX, head {found['head']}, end to end, median on one thread"
            lines.append(f"{student}: {found['p50_ms']:.2f} ms {how}{unstable}")
    return lines


def comparison_text(comparison: Comparison) -> str:
    """The whole comparison for a terminal."""
    references, lines = comparison["references"], []
    groups = group_rows(comparison["rows"])
    for title, rows in groups.items():
        lines += ["", title, *text_table(accuracy_table(rows))]
        lines += text_block(difference_table(rows, references), verdict_lines(rows))
        for figure in FURTHER:
            lines += text_block(further_table(rows, references, figure), verdict_lines(rows, figure))
        for figure in TIME_COLUMNS:
            lines += text_block(time_table(rows, figure), time_lines(rows, figure))
        classes = class_table(rows)
        block = text_block(classes, [])
        if len(classes.rows) > MOST_CLASSES or max(map(len, block), default=0) > WIDTH:
            block = ["", f"  the table of the {len(classes.rows)} classes is in compare.md"]
        lines += block
    if means := comparison["mean"]:
        lines += ["", f"mean of {len(groups)}", *text_table(mean_table(means, references))]
        lines += indent_lines(verdict_lines(means))
        for figure in FURTHER:
            lines += text_block(further_table(means, references, figure), verdict_lines(means, figure))
        for figure in TIME_COLUMNS:
            lines += text_block(time_table(means, figure), time_lines(means, figure, MEAN_MISSING))
    if comparison["latency"]:
        lines += ["", *latency_lines(comparison)]
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in comparison["notes"]]
    return "\n".join([*lines, "", *notes])


def text_table(table: Table) -> list[str]:
    """The lines of a table for a terminal, indented; empty without rows."""
    if not table.rows:
        return []
    headers = [shorten(header, TEXT_NAME_LENGTH) for header in table.headers]
    rows = [[shorten(name, TEXT_NAME_LENGTH), *cells] for name, *cells in table.rows]
    return textwrap.indent(report.table(rows, headers), "  ").splitlines()


def text_block(table: Table, verdicts: Sequence[str]) -> list[str]:
    """A table and the verdicts on it, each after an empty line; empty without rows."""
    return ["", *text_table(table), *indent_lines(verdicts)] if table.rows else []


def indent_lines(lines: Sequence[str]) -> list[str]:
    """Indented lines after an empty one, wrapped where they are too long; empty without lines."""
    if not lines:
        return []
    wrapped = (textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines)
    return ["", *(part for parts in wrapped for part in parts)]


def comparison_page(comparison: Comparison) -> str:
    """The whole comparison in Markdown, with the command that repeats it and what it was measured with."""
    versions, machine = comparison["versions"], comparison["machine"]
    packages = ", ".join(f"{p} {versions[p]}" for p in ("yolo-mkd", "ultralytics", "torch", "python") if p in versions)
    devices = ", ".join(comparison["devices"])
    made_with = f"{packages}; {machine['processor']}, {machine['cores']} cores; trained on {devices}."
    references, groups = comparison["references"], group_rows(comparison["rows"])
    blocks = ["# Comparison", f"```\n{comparison['command']}\n```", made_with]
    for title, rows in groups.items():
        blocks += [f"## {title}", markdown_table(full_table(rows, references)), bullets(verdict_lines(rows))]
        blocks += further_blocks(rows, references)
        for figure in TIME_COLUMNS:
            blocks += [markdown_table(time_table(rows, figure)), bullets(time_lines(rows, figure))]
        if (classes := class_table(rows)).rows:
            blocks += [CLASS_CAPTION, markdown_table(classes)]
    if means := comparison["mean"]:
        blocks += [f"## Mean of {len(groups)}", markdown_table(mean_table(means, references))]
        blocks += [bullets(verdict_lines(means)), *further_blocks(means, references)]
        for figure in TIME_COLUMNS:
            blocks += [markdown_table(time_table(means, figure)), bullets(time_lines(means, figure, MEAN_MISSING))]
    blocks += ["![Differences](differences.png)", "![Accuracy against cost](cost.png)"]
    if any(row.get("to_plain") for row in comparison["rows"]):
        blocks.append("![Accuracy along the run](curve.png)")
    if comparison["latency"]:
        blocks += ["## Latency", bullets(latency_lines(comparison)), "![Accuracy against latency](latency.png)"]
    blocks.append(bullets(comparison["notes"]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def further_blocks(rows: Sequence[Row] | Sequence[MeanRow], references: Sequence[str]) -> list[str]:
    """The accuracy without NMS, of masks and of keypoints with the verdicts, in Markdown; empty if no head has them."""
    found = {figure: further_table(rows, references, figure) for figure in FURTHER}
    shown = [(table, bullets(verdict_lines(rows, figure))) for figure, table in found.items() if table.rows]
    return [block for table, verdicts in shown for block in (markdown_table(table), verdicts)]


def markdown_table(table: Table) -> str:
    """A table in Markdown; a `|` in a cell, which would end the cell, becomes `/`."""
    headers, *rows = ([cell.replace("|", "/") for cell in cells] for cells in (table.headers, *table.rows))
    return report.table(rows, headers, markdown=True)


def bullets(lines: Sequence[str]) -> str:
    """Lines as a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def write_csv(path: Path, comparison: Comparison) -> None:
    """Write the figures of each trial as CSV, a line a trial."""
    columns = ["data", "student", "method", "seed", "map50_95", "map50", "last_map50_95", NMS_FREE, "epochs"]
    columns += ["train_s", "cost_s", *(c for pair in TIME_COLUMNS.values() for c in pair), "failed", *TASK_FIGURES]
    with report.atomic(path) as partial, open(partial, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")  # curves are in compare.json
        writer.writeheader()
        writer.writerows(comparison["cells"])
