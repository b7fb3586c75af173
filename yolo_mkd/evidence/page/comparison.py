"""The page of a comparison: every table and interval, changes by class, cost and latency against accuracy, trials."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from yolo_mkd import documents
from yolo_mkd.evidence.compare import plots, tables
from yolo_mkd.evidence.compare.findings import FURTHER
from yolo_mkd.evidence.compare.schema import Comparison, Difference, MeanRow, Row
from yolo_mkd.evidence.page.blocks import Bar, BarGroup, Chart, Page, PageTable, Tile, axis_ends, bar
from yolo_mkd.evidence.page.charts import GRID, INK, embedded

ADVICE = "restore the file"
STATES = {"better": "better", "worse": "worse"}
MARKED = {"#000000": INK, "#ffffff": "#ffffff", plots.GRID: GRID}  # colours of the plots that follow the page's


class PlannedTrial(TypedDict):
    """What a page shows of a trial in compare.yaml."""

    name: documents.InnerPath
    data: str
    student: str
    method: str
    seed: int
    arguments: dict[str, Any]


class PlannedTrials(TypedDict):
    """What a page shows of compare.yaml."""

    cells: list[PlannedTrial]


def comparison_page(folder: Path, comparison: Comparison) -> Page:
    """The page of a comparison, without its looks.

    Args:
        folder: the comparison's.
        comparison: the contents of its compare.json.
    """
    page = Page("comparison", folder.name, "")
    answer(page, comparison)
    references = comparison["references"]
    groups = tables.group_rows(comparison["rows"])
    if means := comparison["mean"]:
        page.bars += difference_bars(f"mean of {len(groups)}", means, references)
        page.tables.append(page_table("Mean over data sets and students", tables.mean_table(means, references)))
    for title, rows in groups.items():
        page.bars += difference_bars(title, rows, references)
        page.bars += class_bars(title, rows)
        page.tables.append(page_table(title, tables.full_table(rows, references), tables.verdict_lines(rows)))
        for figure, what in FURTHER.items():
            table = tables.further_table(rows, references, figure)
            if table.rows:
                page.tables.append(page_table(f"{title}, {what}", table, tables.verdict_lines(rows, figure)))
        classes = tables.class_table(rows)
        if classes.rows:
            page.tables.append(page_table(f"{title}, by class", classes, [tables.CLASS_CAPTION]))
    page.costs = [
        Chart(svg, title, caption)
        for draw, title, caption in (
            (plots.draw_accuracy_cost, "Accuracy against cost", "Cost of training; bars are deviations over seeds."),
            (plots.draw_accuracy_latency, "Accuracy against latency", "Of the exported student on this machine."),
        )
        if (svg := drawn(draw, comparison))
    ]
    page.trials = trial_table(folder, comparison)
    page.notes = [*tables.latency_lines(comparison), *comparison["notes"]]
    page.command = comparison["command"]
    teacher = comparison["teacher"]
    files = [["teacher", teacher["file"], teacher["sha256"]]] if teacher else []
    made = [["packages", ", ".join(f"{k} {v}" for k, v in comparison["versions"].items())]]
    made += [["machine", ", ".join(f"{k} {v}" for k, v in comparison["machine"].items())]]
    page.facts = [
        PageTable("Files", ["model", "file", "SHA-256"], files),
        PageTable("Made with", ["what", "version"], made),
    ]
    return page


def answer(page: Page, comparison: Comparison) -> None:
    """Set the answer at the top: the first method's difference from the first reference, and where it is."""
    rows: Sequence[Row] | Sequence[MeanRow] = comparison["mean"] or comparison["rows"]
    found = first_difference(rows, comparison["references"])
    if found is None:
        page.answer = "This comparison has no difference to report."
        page.caveat = "A difference needs a finished trial of a reference, such as plain, and of another method."
        return
    method, other, change = found
    own = next((r for r in rows if r["method"] == method), None)
    method = short_name(method)
    seeds = f"{change['seeds']} seed{'s' if change['seeds'] > 1 else ''}"
    text = tables.difference_text(change)
    meaning = "Plain is the same student trained without a teacher. " if other == "plain" else ""
    if change["verdict"] in STATES:
        page.answer = f"{method} is {change['verdict']} than {other}: {text} mAP50-95 over {seeds}."
        page.caveat = f"{meaning}The 95 % interval of the paired differences excludes 0: seeds alone do not explain it."
    elif change["low"] is None:
        page.answer = f"{method} differs from {other} by {text} mAP50-95 with one seed: no evidence either way."
        page.caveat = f"{meaning}An interval needs more seeds: resume this comparison with seeds=3."
    else:
        page.answer = f"{method} is not distinguishable from {other}: {text} mAP50-95 over {seeds}."
        page.caveat = f"{meaning}The 95 % interval of the paired differences contains 0. More seeds make it narrower."
    page.tiles.append(Tile(f"{change['mean']:+.3f}", f"mAP50-95, {method} minus {other}", seeds))
    if change["low"] is not None:
        page.tiles.append(Tile(f"{change['low']:+.3f} to {change['high']:+.3f}", "95 % interval", change["verdict"]))
    if own and own.get("cost"):
        page.tiles.append(Tile(f"{own['cost']:.2f}x", "cost of training", "of plain"))
    done = sum("failed" not in cell for cell in comparison["cells"])
    page.tiles.append(Tile(f"{done} of {len(comparison['cells'])}", "trials finished", ""))
    groups = tables.group_rows(comparison["rows"])
    for title, group in groups.items():
        page.where += where_lines(f"{title}: " if len(groups) > 1 else "", group)


def short_name(method: str) -> str:
    """A method for headings: of the paths in it only the last name."""
    return re.sub(r"(=)[^:=]*/(?=[^:=])", r"\1", method)


def first_difference(
    rows: Sequence[Row] | Sequence[MeanRow], references: Sequence[str]
) -> tuple[str, str, Difference] | None:
    """The difference that the page answers with: of the last method, which is usually one's own, from a reference."""
    for other in references:
        for row in reversed(rows):
            found = row.get("against", {}).get(other, {}).get(tables.FIGURE)
            if found:
                return row["method"], other, found
    return None


def where_lines(lead: str, rows: Sequence[Row]) -> list[str]:
    """What the intervals of each method say: a line for each with its verdict and the classes that differ clearly.

    Args:
        lead: begins each line.
        rows: of one student and data set.
    """
    lines = []
    for row in rows:
        verdict = tables.verdict_text(row.get("against", {}), tables.FIGURE)
        if row["method"] == "plain" or not verdict:
            continue
        changes = {n: c["change"] for n, c in row.get("classes", {}).items() if c["change"]}
        clear = {n: c["mean"] for n, c in changes.items() if c and c["verdict"] in STATES}
        names = [f"{n} {mean:+.3f}" for n, mean in sorted(clear.items(), key=lambda item: -item[1])]
        classes = f"Classes that differ clearly from plain: {', '.join(names) or 'none'}." if changes else ""
        lines.append(f"{lead}{short_name(row['method'])}: {verdict}. {classes}".strip())
    return lines


def difference_bars(title: str, rows: Sequence[Row] | Sequence[MeanRow], references: Sequence[str]) -> list[BarGroup]:
    """The difference of each method from each reference, an axis each."""
    groups = []
    for other in references:
        found = [(short_name(r["method"]), r.get("against", {}).get(other, {}).get(tables.FIGURE)) for r in rows]
        bars = interval_bars([(name, change) for name, change in found if change])
        if bars:
            groups.append(BarGroup(f"{title}: mAP50-95 minus {other}'s", bars))
    return groups


def class_bars(title: str, rows: Sequence[Row]) -> list[BarGroup]:
    """The change of each class from plain, an axis a method."""
    groups = []
    for row in rows:
        if row["method"] == "plain":
            continue
        changes = [(name, c["change"]) for name, c in row.get("classes", {}).items()]
        bars = interval_bars([(name, change) for name, change in changes if change])
        if bars:
            groups.append(BarGroup(f"{title}: AP50-95 by class, {row['method']} minus plain", bars))
    return groups


def interval_bars(found: Sequence[tuple[str, Difference]]) -> list[Bar]:
    """Differences with their intervals on one axis."""
    spans = [
        (c["mean"] if c["low"] is None else c["low"], c["mean"], c["mean"] if c["high"] is None else c["high"])
        for _, c in found
    ]
    ends = axis_ends([v for span in spans for v in span])
    return [
        bar(name, tables.difference_text(change), span, ends, STATES.get(change["verdict"], "unclear"))
        for (name, change), span in zip(found, spans, strict=True)
    ]


def page_table(title: str, table: tables.Table, lines: Sequence[str] = ()) -> PageTable:
    """A table of a comparison for the page."""
    return PageTable(title, table.headers, table.rows, " ".join(f"{line.rstrip('.')}." for line in lines))


def drawn(draw: Callable[[Comparison, Path], None], comparison: Comparison) -> str:
    """One of the comparison's plots as SVG in the page's colours; empty if it draws nothing."""
    import matplotlib

    with (
        tempfile.TemporaryDirectory() as folder,
        matplotlib.rc_context({"svg.fonttype": "none", "savefig.transparent": True}),
    ):
        file = Path(folder) / "plot.svg"
        draw(comparison, file)
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
    for colour, mark in MARKED.items():
        text = text.replace(f"stroke: {colour}", f"stroke: {mark}").replace(f"fill: {colour}", f"fill: {mark}")
    text = text.replace('<text style="', f'<text style="fill: {INK}; ')
    return embedded(text, "plot") if text else ""


def trial_table(folder: Path, comparison: Comparison) -> PageTable:
    """Every trial with its figures and a link to its log, relative to the page."""
    names = {(c["data"], c["student"], c["method"], c["seed"]): c["name"] for c in planned(folder)}
    rows, links = [], []
    for cell in comparison["cells"]:
        key = (cell["data"], cell["student"], cell["method"], cell["seed"])
        score = cell.get("failed") or f"{cell['map50_95']:.3f}"
        seconds = "" if "failed" in cell else f"{cell['train_s']:.0f}"
        rows.append([f"{cell['method']} seed {cell['seed']}", cell["data"], cell["student"], str(score), seconds])
        links.append(f"{names[key]}/log.txt" if key in names else "")
    return PageTable("Trials", ["trial and its log", "data", "student", "mAP50-95", "train s"], rows, "", links)


def planned(folder: Path) -> list[PlannedTrial]:
    """The trials as compare.yaml has them; none without that file.

    Raises:
        BadInput: it is damaged.
    """
    file = folder / "compare.yaml"
    if not file.is_file():
        return []
    contents = documents.read_yaml(file, str(file), ADVICE)
    documents.validated(TypeAdapter(PlannedTrials), contents, str(file), ADVICE)
    return cast(PlannedTrials, contents)["cells"]
