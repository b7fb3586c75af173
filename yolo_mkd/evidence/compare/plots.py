"""Plots of a comparison: differences with intervals, accuracy against cost, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_mkd import plotting
from yolo_mkd.evidence.compare.findings import NMS_FREE, TASK_FIGURES, figure_of
from yolo_mkd.evidence.compare.schema import Comparison, Difference, MeanRow, Row
from yolo_mkd.evidence.compare.tables import FIGURE, difference_text, group_rows, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VERDICT_COLOURS = {
    "better": "#009E73",
    "worse": "#D55E00",
    "not distinguishable": "#767676",
    "one seed, no interval": "#767676",
}
TITLES = {FIGURE: "mAP50-95", NMS_FREE: "mAP50-95 without NMS"}
TITLES |= {figure: f"mAP50-95 of {what}" for figure, what in TASK_FIGURES.items()}
MARKERS = {"plain": ("o", "#E69F00"), "longer": ("o", "#F0C36D"), "native": ("s", "#000000")}
OUR_MARKER = ("D", "#0072B2")
LABEL_LINE = {
    "arrowstyle": "-",
    "color": "#bbbbbb",
    "linewidth": 0.8,
    "shrinkA": 1,
    "shrinkB": 6,
    "relpos": (0, 0.5),
}
GRID = "#e6e6e6"
Differences = list[tuple[str, Difference]]  # by method, the first at the top


def draw_differences(comparison: Comparison, path: Path) -> None:
    """Draw every method's difference from each reference, a panel for each data set, student, head and reference.

    Args:
        comparison: as `compare` returns it.
        path: of the image; not written if there are no differences.
    """
    panels = difference_panels(comparison)
    if not panels:
        return
    titles, others = (list(dict.fromkeys(place[i] for place in panels)) for i in (0, 1))
    most = max(map(len, panels.values()))
    figure = new_figure(7.2 * len(others), len(titles) * (0.4 * most + 1.2))
    grid = figure.subplots(len(titles), len(others), squeeze=False, sharex=True)
    for axes in grid.flat:
        axes.set_visible(False)
    for (title, other), rows in panels.items():
        axes = grid[titles.index(title)][others.index(other)]
        axes.set_visible(True)
        axes.tick_params(labelbottom=True)
        draw_intervals(axes, rows)
        axes.set_title(f"{title} minus {other}'s", fontsize=10, loc="left")
    found = [difference for rows in panels.values() for _, difference in rows]
    ends = [0.0, *(v for f in found for v in (f["mean"], f["low"], f["high"]) if v is not None)]
    room = max(0.06 * (max(ends) - min(ends)), 0.002)
    grid[0][0].set_xlim(min(ends) - room, max(ends) + room)
    plotting.save(figure, path)


def difference_panels(comparison: Comparison) -> dict[tuple[str, str], Differences]:
    """The differences of each panel, by its title and reference; panels without differences are left out."""
    groups: dict[str, Sequence[Row] | Sequence[MeanRow]] = dict(group_rows(comparison["rows"]))
    if comparison["mean"]:
        groups = {f"mean of {len(groups)}": comparison["mean"], **groups}
    panels = {
        (f"{title}: {name}", other): method_differences(rows, other, figure)
        for title, rows in groups.items()
        for figure, name in TITLES.items()
        for other in comparison["references"]
    }
    return {place: rows for place, rows in panels.items() if rows}


def method_differences(rows: Sequence[Row] | Sequence[MeanRow], other: str, figure: str) -> Differences:
    """The methods that have a difference from a reference in a figure, with that difference."""
    found = [(r["method"], r.get("against", {}).get(other, {}).get(figure)) for r in rows]
    return [(method, difference) for method, difference in found if difference]


def draw_intervals(axes: Axes, rows: Differences) -> None:
    """Draw one line a method, the first at the top, with its figures beside it."""
    for height, (_, found) in enumerate(reversed(rows)):
        colour = VERDICT_COLOURS[found["verdict"]]
        if found["low"] is not None and found["high"] is not None:
            axes.plot([found["low"], found["high"]], [height, height], color=colour, linewidth=2, zorder=2)
        fill = colour if found["low"] is not None else "white"
        axes.plot(found["mean"], height, "o", color=colour, markerfacecolor=fill, markersize=7, zorder=3)
        text = f"{difference_text(found)}  {found['verdict']}"
        axes.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [shorten(method) for method, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_accuracy_cost(comparison: Comparison, path: Path) -> None:
    """Draw accuracy against cost, a panel for each data set and student.

    Args:
        comparison: as `compare` returns it.
        path: of the image; not written if no trial has finished.
    """
    panels = {title: [r for r in rows if r["seeds"]] for title, rows in group_rows(comparison["rows"]).items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(7 * columns, 4.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, rows) in zip(grid.flat, panels.items(), strict=False):
        draw_costs(axes, rows)
        axes.set_title(title, fontsize=10, loc="left")
    plotting.save(figure, path)


def draw_costs(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw one labelled point a method, with its standard deviation over the seeds."""
    relative = all(r["cost"] is not None for r in rows)
    points = [(row_cost(r, relative), r["map50_95"]["mean"], r) for r in rows]
    for x, y, row in points:
        marker, colour = MARKERS.get(row["method"].split(":")[0], OUR_MARKER)
        axes.errorbar(x, y, row["map50_95"]["deviation"], color=colour, linewidth=1.2, capsize=3, zorder=2)
        axes.plot(x, y, marker, color=colour, markersize=8, markeredgecolor="white", zorder=3)
    right = max(x for x, _, _ in points)
    low = min(y - (r["map50_95"]["deviation"] or 0) for _, y, r in points)
    high = max(y + (r["map50_95"]["deviation"] or 0) for _, y, r in points)
    room = max(0.15 * (high - low), 0.005)
    low, high = low - room, high + room
    axes.set_xlim(0, 1.5 * right)  # room for the labels on the right
    axes.set_ylim(low, high)
    points.sort(key=lambda p: p[1])
    least = min(0.07, 0.95 / len(points)) * (high - low)
    heights = plotting.label_heights([y for _, y, _ in points], least=least, low=low, high=high)
    for (x, y, row), height in zip(points, heights, strict=True):
        label = f"{shorten(row['method'])}  {y:.3f}"
        axes.annotate(label, (x, y), (1.08 * right, height), va="center", fontsize=8.5, arrowprops=LABEL_LINE)
    axes.set_xlabel("cost of training, as a multiple of plain's" if relative else "training time [s]")
    axes.set_ylabel("mAP50-95, mean ± standard deviation")
    finish_axes(axes)


def row_cost(row: Row, relative: bool) -> float:
    """The cost of a row as a multiple of plain's, or its training time [s]."""
    cost = row["cost"] if relative else row["train_s"]
    assert cost is not None
    return cost


def draw_accuracy_latency(comparison: Comparison, path: Path) -> None:
    """Draw accuracy against the latency of the exported students, a panel a data set and a point a student and method.

    Args:
        comparison: as `compare` returns it.
        path: of the image; not written if no student was timed.
    """
    timed = [t for t in comparison["latency"] if "p50_ms" in t]
    latency = {(t["data"], t["student"]): t["p50_ms"] for t in timed}
    heads = {(t["data"], t["student"]): NMS_FREE if t["head"] == "one2one" else FIGURE for t in timed}
    rows = [r for r in comparison["rows"] if r["seeds"] and heads.get((r["data"], r["student"])) in r]
    if not rows:
        return
    methods = list(dict.fromkeys(r["method"] for r in rows))
    sets = list(dict.fromkeys(r["data"] for r in rows))
    figure = new_figure(7 * len(sets), 4.6)
    for axes, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        own = [r for r in rows if r["data"] == data]
        draw_latencies(
            axes,
            own,
            methods,
            {r["student"]: latency[data, r["student"]] for r in own},
            {r["student"]: heads[data, r["student"]] for r in own},
        )
        axes.set_title(data, fontsize=10, loc="left")
    plotting.save(figure, path)


def draw_latencies(
    axes: Axes, rows: Sequence[Row], methods: Sequence[str], latency: Mapping[str, float], heads: Mapping[str, str]
) -> None:
    """Draw the panel of one data set.

    Args:
        axes: to draw on.
        rows: of the data set.
        methods: of all panels, in the order of the legend.
        latency: of each student [ms].
        heads: the figure that belongs to each student's timed head.
    """
    ours = [m for m in methods if m not in MARKERS]
    colours = plotting.COLOURS
    markers = MARKERS | {m: (OUR_MARKER[0], colours[-1 - i % len(colours)]) for i, m in enumerate(ours)}
    slowest = max(latency.values())
    for r in rows:
        marker, colour = markers[r["method"]]
        shift = 0.016 * slowest * (methods.index(r["method"]) - (len(methods) - 1) / 2)  # methods side by side
        accuracy = figure_of(r, heads[r["student"]])
        x, mean = latency[r["student"]] + shift, accuracy["mean"]
        axes.errorbar(x, mean, accuracy["deviation"], color=colour, linewidth=1.2, capsize=2, zorder=2)
        label = shorten(r["method"]) if r["student"] == rows[0]["student"] else None
        axes.plot(x, mean, marker, color=colour, markersize=7, markeredgecolor="white", zorder=3, label=label)
    for student in dict.fromkeys(r["student"] for r in rows):
        top = (latency[student], 1.0)
        axes.annotate(student, top, xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8.5)
    axes.set_xlim(0, 1.25 * slowest)
    axes.margins(y=0.15)
    axes.set_xlabel("latency as ONNX, one thread: p50 [ms]; methods side by side")
    axes.set_ylabel("mAP50-95 of the timed head,\nmean ± standard deviation")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8.5)
    finish_axes(axes)


def finish_axes(axes: Axes) -> None:
    """Draw a grid behind the points, and no frame at the top and right."""
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size [inches]."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")
