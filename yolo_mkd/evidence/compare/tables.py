"""The findings as text for people, as Markdown and as CSV, all drawn from the one document."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_mkd.evidence.compare.findings import NMS_FREE
from yolo_mkd.evidence.compare.statistics import UNCLEAR

FIGURE = "map50_95"
MOST_CLASSES = 13  # lines of the table of classes that a terminal is shown
WIDTH = 110  # of its notes


def main_table(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The main table of a data set and a student, with its head."""
    references = document["references"]
    compared = [f"vs {other} [95 %]" for other in references]
    table = [["method", "seeds", "mAP50-95", "last", "mAP50", *compared, "epochs", "train s", "cost"]]
    for row in rows:
        if not row["seeds"]:
            table.append([row["method"], "0", "FAILED", *[""] * (len(table[0]) - 3)])
            continue
        figures = [f"{row[name]['mean']:.3f}" for name in ("last_map50_95", "map50")]
        changes = [change(row["against"].get(other, {}).get(FIGURE)) for other in references]
        spent = [f"{row['epochs']:g}", f"{row['train_s']:.0f}", cost(row)]
        table.append([row["method"], str(len(row["seeds"])), spread(row[FIGURE]), *figures, *changes, *spent])
    return table


def cost(row: dict[str, Any]) -> str:
    """Training time as a multiple of plain's."""
    return "-" if row["cost"] is None else f"{row['cost']:.2f}"


def spread(figure: dict[str, Any] | float) -> str:
    """A mean, with its standard deviation over the seeds where there is one."""
    if isinstance(figure, float):
        return f"{figure:.3f}"
    return f"{figure['mean']:.3f}" + (f" ± {figure['deviation']:.3f}" if figure["deviation"] is not None else "")


def change(found: dict[str, Any] | None) -> str:
    """A difference and its interval."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def nms_free_table(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The accuracy without NMS of the students that have such a head, with its head; nothing where none has."""
    references, own = document["references"], [row for row in rows if NMS_FREE in row]
    if not own:
        return []
    table = [["without NMS", "mAP50-95", *(f"vs {other} [95 %]" for other in references)]]
    for row in own:
        changes = [change(row["against"].get(other, {}).get(NMS_FREE)) for other in references]
        table.append([row["method"], spread(row[NMS_FREE]), *changes])
    return table


def verdicts(rows: Sequence[dict[str, Any]], figure: str = FIGURE) -> list[str]:
    """What the intervals allow to say of each method, a line each; nothing where there are none."""
    said = {row["method"]: verdict(row["against"], figure) for row in rows if row.get("against")}
    return [f"{method}: {word}" for method, word in said.items() if word]


def verdict(against: dict[str, dict[str, Any]], figure: str) -> str:
    """What a method's intervals allow to say: better or worse than a reference, or not distinguishable from it."""
    said: dict[str, list[str]] = {}
    for other, changes in against.items():
        if (found := changes.get(figure)) and found["low"] is not None:
            said.setdefault(found["verdict"], []).append(other)
    return ", ".join(
        f"{word} {'from' if word == UNCLEAR else 'than'} {' and '.join(others)}" for word, others in said.items()
    )


def groups(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows by data set and student, under a title that names both."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in document["rows"]:
        found.setdefault(f"{row['student']} on {row['data']}", []).append(row)
    return found


def mean_table(document: dict[str, Any]) -> list[list[str]]:
    """The mean over data sets and students, with its head."""
    references = document["references"]
    table = [["method", "mAP50-95", *(f"vs {other} [95 %]" for other in references), "cost"]]
    for row in document["mean"]:
        changes = [change(row["against"].get(other, {}).get(FIGURE)) for other in references]
        table.append([row["method"], f"{row[FIGURE]:.3f}", *changes, cost(row)])
    return table


def class_table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Plain's mAP50-95 of each class and every other method's change, starred where its interval excludes 0."""
    plain = next((r for r in rows if r["method"] == "plain" and r["seeds"]), None)
    others = [r for r in rows if r["method"] != "plain" and r["seeds"]]
    if plain is None or not others:
        return []
    table = [["class", "plain", *(r["method"] for r in others)]]
    for name, figure in plain["classes"].items():
        changes = [r["classes"].get(name, {}).get("change") for r in others]
        table.append([name, f"{figure['mean']:.3f}", *map(starred, changes)])
    return table


def starred(found: dict[str, Any] | None) -> str:
    """A difference without its interval."""
    if found is None:
        return ""
    return f"{found['mean']:+.3f}{'*' if found['verdict'] in {'better', 'worse'} else ' '}"


def latencies(document: dict[str, Any]) -> list[str]:
    """How fast each exported student is, a line each."""
    said = []
    for found in document["latency"]:
        who = f"{found['student']} on {found['data']}"
        if "why_not" in found:
            said.append(f"{who}: not exported: {found['why_not']}")
        else:
            shaky = "" if found["stable"] else "; NOT STABLE: time it again on a quiet machine"
            file = f"as ONNX, head {found['head']}, end to end, median on one thread"
            said.append(f"{who}: {found['p50_ms']:.2f} ms {file}{shaky}")
    return said


def text(document: dict[str, Any]) -> str:
    """The findings for a terminal."""
    lines = []
    for title, rows in groups(document).items():
        lines += ["", title, *aligned(main_table(document, rows)), *indented(verdicts(rows))]
        lines += nms_free(document, rows)
        if len(classes := class_table(rows)) > MOST_CLASSES:
            lines += ["", f"  compare.md has what became of each of {len(classes) - 1} classes"]
        elif classes:
            lines += ["", *aligned(classes)]
    if document["mean"]:
        lines += ["", f"mean of {len(groups(document))}", *aligned(mean_table(document))]
        lines += indented(verdicts(document["mean"])) + nms_free(document, document["mean"])
    lines += ["", *latencies(document)] if document["latency"] else []
    told = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in document["notes"]]
    return "\n".join([*lines, "", *told])


def nms_free(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The accuracy without NMS and what it allows to say, for a terminal."""
    table = nms_free_table(document, rows)
    return ["", *aligned(table), *indented(verdicts(rows, NMS_FREE))] if table else []


def indented(said: Sequence[str]) -> list[str]:
    """A paragraph of a terminal's text."""
    return ["", *(f"  {line}" for line in said)] if said else []


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]


def markdown(document: dict[str, Any]) -> str:
    """The findings as a page, with the command that repeats them and what they were measured with."""
    made = document["versions"]
    with_what = ", ".join(
        f"{name} {made[name]}" for name in ("yolo-mkd", "ultralytics", "torch", "python") if name in made
    )
    machine = document["machine"]
    lines = ["# Comparison", "", "```", document["command"], "```", ""]
    lines += [
        f"{with_what}; {machine['processor']}, {machine['cores']} cores; trained on {', '.join(document['devices'])}.",
        "",
    ]
    for title, rows in groups(document).items():
        lines += [f"## {title}", "", *piped(main_table(document, rows)), ""]
        lines += [*(f"- {said}" for said in verdicts(rows)), "", *nms_free_page(document, rows)]
        if classes := class_table(rows):
            told = "mAP50-95 of each class: plain's, and each method's change, starred where its interval excludes 0."
            lines += [told, "", *piped(classes), ""]
    if document["mean"]:
        lines += [f"## Mean of {len(groups(document))}", "", *piped(mean_table(document)), ""]
        lines += [*(f"- {said}" for said in verdicts(document["mean"])), ""]
        lines += nms_free_page(document, document["mean"])
    lines += ["![Differences](differences.png)", "", "![Accuracy against cost](cost.png)", ""]
    if document["latency"]:
        lines += ["## Latency", "", *(f"- {said}" for said in latencies(document)), ""]
        lines += ["![Accuracy against latency](latency.png)", ""]
    return "\n".join([*lines, *(f"- {note}" for note in document["notes"]), ""])


def nms_free_page(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The accuracy without NMS and what it allows to say, in Markdown."""
    table = nms_free_table(document, rows)
    return [*piped(table), "", *(f"- {said}" for said in verdicts(rows, NMS_FREE)), ""] if table else []


def piped(table: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    rows = [f"| {' | '.join(cell.replace('|', '/').strip() for cell in row)} |" for row in table]
    return [rows[0], "|---" * len(table[0]) + "|", *rows[1:]]


def write_csv(path: Path, document: dict[str, Any]) -> None:
    """One line a data set, student, method and seed: the raw figures, for tools of one's own."""
    columns = ["data", "student", "method", "seed", "map50_95", "map50", "last_map50_95", NMS_FREE, "epochs"]
    columns += ["train_s", "cost_s", "failed"]
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(document["cells"])
