"""Two pictures of the findings: differences with their intervals, and accuracy against cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_mkd.evidence.compare.findings import NMS_FREE
from yolo_mkd.evidence.compare.tables import FIGURE, change, groups
from yolo_mkd.plotting import COLOURS as SEVERAL
from yolo_mkd.plotting import label_heights, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, by what the interval allows to say
COLOURS = {
    "better": "#009E73",
    "worse": "#D55E00",
    "not distinguishable": "#767676",
    "one seed, no interval": "#767676",
}
FIGURES = {FIGURE: "mAP50-95", NMS_FREE: "mAP50-95 without NMS"}
KINDS = {"plain": ("o", "#E69F00"), "longer": ("o", "#F0C36D"), "native": ("s", "#000000")}
OURS = ("D", "#0072B2")


def differences(document: dict[str, Any], path: Path) -> None:
    """Every method's difference to each reference, a panel for each data set, student, head and reference.

    Args:
        document: as `compare` returns it.
        path: the picture to write.
    """
    means = {f"mean of {len(groups(document))}": document["mean"]} if document["mean"] else {}
    panels = {
        (f"{title}: {said}", other): differing(rows, other, figure)
        for title, rows in (means | groups(document)).items()
        for figure, said in FIGURES.items()
        for other in document["references"]
    }
    panels = {place: rows for place, rows in panels.items() if rows}
    if not panels:
        return
    titles, others = (list(dict.fromkeys(place[i] for place in panels)) for i in (0, 1))
    most = max(map(len, panels.values()))
    figure = sheet(7.2 * len(others), len(titles) * (0.4 * most + 1.2))
    grid = figure.subplots(len(titles), len(others), squeeze=False, sharex=True)
    for axes in grid.flat:
        axes.set_visible(False)
    for (title, other), rows in panels.items():
        axes = grid[titles.index(title)][others.index(other)]
        axes.set_visible(True)
        axes.tick_params(labelbottom=True)
        draw_intervals(axes, rows)
        axes.set_title(f"{title} less {other}'s", fontsize=10, loc="left")
    found = [difference for rows in panels.values() for _, difference in rows]
    ends = [0.0, *(f[k] for f in found for k in ("mean", "low", "high") if f[k] is not None)]
    room = max(0.06 * (max(ends) - min(ends)), 0.002)
    grid[0][0].set_xlim(min(ends) - room, max(ends) + room)
    save(figure, path)


def differing(rows: list[dict[str, Any]], other: str, figure: str) -> list[tuple[str, dict[str, Any]]]:
    """The methods that have a difference to a reference in a figure, and that."""
    found = [(r["method"], r.get("against", {}).get(other, {}).get(figure)) for r in rows]
    return [(method, difference) for method, difference in found if difference]


def draw_intervals(axes: Axes, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """One line a method, the first at the top, its figures beside it."""
    for height, (_, found) in enumerate(reversed(rows)):
        colour = COLOURS[found["verdict"]]
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [height, height], color=colour, linewidth=2, zorder=2)
        full = colour if found["low"] is not None else "white"
        axes.plot(found["mean"], height, "o", color=colour, markerfacecolor=full, markersize=7, zorder=3)
        text = f"{change(found)}  {found['verdict']}"
        axes.annotate(text, (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [short(method) for method, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def short(method: str, most: int = 40) -> str:
    """A method's name, without its middle where it is too long for a picture, as paths make it."""
    return method if len(method) <= most else f"{method[: most // 2 - 1]}...{method[-most // 2 + 2 :]}"


def accuracy_cost(document: dict[str, Any], path: Path) -> None:
    """Accuracy against cost, a panel for each data set and student.

    Args:
        document: as `compare` returns it.
        path: the picture to write.
    """
    panels = {title: [r for r in rows if r["seeds"]] for title, rows in groups(document).items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = sheet(7 * columns, 4.6 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, rows) in zip(grid.flat, panels.items(), strict=False):
        draw_costs(axes, rows)
        axes.set_title(title, fontsize=10, loc="left")
    save(figure, path)


def draw_costs(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """One labelled point a method, with its standard deviation over the seeds."""
    relative = all(r["cost"] is not None for r in rows)
    points = [(r["cost"] if relative else r["train_s"], r[FIGURE]["mean"], r) for r in rows]
    for x, y, row in points:
        marker, colour = KINDS.get(row["method"].split(":")[0], OURS)
        axes.errorbar(x, y, row[FIGURE]["deviation"], color=colour, linewidth=1.2, capsize=3, zorder=2)
        axes.plot(x, y, marker, color=colour, markersize=8, markeredgecolor="white", zorder=3)
    right = max(x for x, _, _ in points)
    lows = [y - (r[FIGURE]["deviation"] or 0) for _, y, r in points]
    highs = [y + (r[FIGURE]["deviation"] or 0) for _, y, r in points]
    room = max(0.15 * (max(highs) - min(lows)), 0.005)
    low, high = min(lows) - room, max(highs) + room
    axes.set_xlim(0, 1.5 * right)  # room for the labels on the right
    axes.set_ylim(low, high)
    points.sort(key=lambda p: p[1])
    heights = label_heights(
        [y for _, y, _ in points], least=min(0.07, 0.95 / len(points)) * (high - low), low=low, high=high
    )
    for (x, y, row), height in zip(points, heights, strict=True):
        arrow = {
            "arrowstyle": "-",
            "color": "#bbbbbb",
            "linewidth": 0.8,
            "shrinkA": 1,
            "shrinkB": 6,
            "relpos": (0, 0.5),
        }
        said = f"{short(row['method'])}  {y:.3f}"
        axes.annotate(said, (x, y), (1.08 * right, height), va="center", fontsize=8.5, arrowprops=arrow)
    axes.set_xlabel("cost of training, as a multiple of plain's" if relative else "training time [s]")
    axes.set_ylabel("mAP50-95, mean ± standard deviation")
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def accuracy_latency(document: dict[str, Any], path: Path) -> None:
    """Accuracy against the latency of the exported students, a panel a data set and a point a student and method.

    Args:
        document: as `compare` returns it.
        path: the picture to write.
    """
    found = [f for f in document["latency"] if "p50_ms" in f]
    timed = {(f["data"], f["student"]): f["p50_ms"] for f in found}
    scored = {(f["data"], f["student"]): NMS_FREE if f["head"] == "one2one" else FIGURE for f in found}
    rows = [r for r in document["rows"] if r["seeds"] and scored.get((r["data"], r["student"])) in r]
    if not rows:
        return
    sets, methods = (list(dict.fromkeys(r[key] for r in rows)) for key in ("data", "method"))
    ours = enumerate(m for m in methods if m not in KINDS)
    styles = KINDS | {m: (OURS[0], SEVERAL[-1 - i % len(SEVERAL)]) for i, m in ours}
    figure = sheet(7 * len(sets), 4.6)
    for axes, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        own = [r for r in rows if r["data"] == data]
        slowest = max(timed[data, r["student"]] for r in own)
        for r in own:
            marker, colour = styles[r["method"]]
            beside = 0.016 * slowest * (methods.index(r["method"]) - (len(methods) - 1) / 2)
            reached = r[scored[data, r["student"]]]
            x, mean = timed[data, r["student"]] + beside, reached["mean"]
            axes.errorbar(x, mean, reached["deviation"], color=colour, linewidth=1.2, capsize=2, zorder=2)
            label = short(r["method"]) if r["student"] == own[0]["student"] else None
            axes.plot(x, mean, marker, color=colour, markersize=7, markeredgecolor="white", zorder=3, label=label)
        for student in dict.fromkeys(r["student"] for r in own):
            top = (timed[data, student], 1.0)
            axes.annotate(student, top, xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8.5)
        axes.set_xlim(0, 1.25 * slowest)
        axes.margins(y=0.15)
        axes.set_title(data, fontsize=10, loc="left")
        axes.set_xlabel("latency as ONNX, one thread: p50 [ms]; methods side by side")
        axes.set_ylabel("mAP50-95 of the head that was timed,\nmean ± standard deviation")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8.5)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def sheet(width: float, height: float) -> Figure:
    """An empty figure [inches]."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")
