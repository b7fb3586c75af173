"""The board: what a run came to, as a table and a picture, both drawn from one JSON document.

The document is what `report.write` wrote, with these fields:
    imgsz: side of the pictures that accuracy and latency were measured on, in pixels.
    names: the classes, in order.
    rows: one dict per model, `plain student` and `distilled student` among them: name, parameters, gflops, map50_95,
        map50, p50_ms, p90_ms (None where too few runs were timed), bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from yolo_mkd.plotting import COLOURS, label_heights, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN, DISTILLED = "plain student", "distilled student"
MARKERS = {"teacher": ("s", "#000000"), PLAIN: ("o", "#E69F00"), DISTILLED: ("o", "#0072B2")}
OTHER_MARKER = ("D", "#767676")  # assistants


class Panel(TypedDict):
    """One picture with one model's detections.

    Attributes:
        image: B G R, H W 3 uint8.
        title: whose detections these are.
        boxes: x1, y1, x2, y2 in pixels, confidence, class, N 6.
    """

    image: np.ndarray
    title: str
    boxes: np.ndarray


def table(document: dict[str, Any]) -> str:
    """The figures as aligned text, one line a model, then what distillation changed.

    Args:
        document: see the head of this file.

    Returns:
        The table and the verdict, with no newline at the end.
    """
    head = ["model", "parameters", "GFLOPs", "mAP50-95", "mAP50", "p50 ms", "p90 ms", "MB"]
    lines = [head] + [
        [
            row["name"],
            f"{row['parameters']:,}",
            f"{row['gflops']:.2f}",
            f"{row['map50_95']:.3f}",
            f"{row['map50']:.3f}",
            *("-" if row[key] is None else f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms")),
            f"{row['bytes'] / 1e6:.2f}",
        ]
        for row in document["rows"]
    ]
    gained = [f"{difference(document, key):+.3f}" for key in ("map50_95", "map50")]
    lines.append(["distilled - plain", "", "", *gained, "", "", ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        ).rstrip()  # names left, figures right
        for line in lines
    ]
    return "\n".join([*text, "", verdict(document)])


def verdict(document: dict[str, Any]) -> str:
    """What distillation changed and how far to trust it, in two sentences."""
    change = difference(document, "map50_95")
    if abs(change) < 0.0005:  # what three decimals cannot show is no gain
        found = "ended level with"
    else:
        found = f"{'gained' if change > 0 else 'lost'} {abs(change):.3f} mAP50-95 against"
    return f"The distilled student {found} the plain one. One seed, no interval: no evidence either way."


def difference(document: dict[str, Any], key: str) -> float:
    """The distilled student's figure less the plain one's."""
    rows = {row["name"]: row for row in document["rows"]}
    return float(rows[DISTILLED][key] - rows[PLAIN][key])


def picture(document: dict[str, Any], path: str | Path, strips: Sequence[Sequence[Panel]] = ()) -> Path:
    """Draw accuracy against latency, and beside it what the models find in a few pictures.

    Args:
        document: see the head of this file.
        path: the picture to write; its suffix says the format.
        strips: one row of panels per picture, each row as long as the first.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure

    rows, columns = len(strips), len(strips[0]) if strips else 0
    figure = Figure(figsize=(7 + 2.6 * columns, max(5.4, 2.75 * rows + 1.2)), dpi=150, layout="constrained")
    if strips:
        [[left, right]] = figure.subfigures(1, 2, squeeze=False, width_ratios=[6.6, 2.6 * columns])
        grid = right.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, (panel for strip in strips for panel in strip), strict=True):
            draw_panel(axes, panel)
        found = sorted({int(k) for strip in strips for panel in strip for k in panel["boxes"][:, 5]})
        legend(right, [(document["names"][k], COLOURS[k % len(COLOURS)]) for k in found])
    else:
        left = figure
    draw_points(left.subplots(), document)
    return save(figure, Path(path))


def draw_points(axes: Axes, document: dict[str, Any]) -> None:
    """One labelled point a model, and an arrow from the plain student to the distilled one."""
    timed = [row for row in document["rows"] if row["p50_ms"] is not None]
    points = {row["name"]: (row["p50_ms"], row["map50_95"]) for row in timed}
    for row in timed:
        marker, colour = MARKERS.get(row["name"], OTHER_MARKER)
        x, y = points[row["name"]]
        if row["p90_ms"] is not None:
            axes.plot([x, row["p90_ms"]], [y, y], color=colour, linewidth=1.4, alpha=0.6, zorder=2)
            axes.plot(row["p90_ms"], y, "|", color=colour, markersize=8, zorder=2)
        axes.plot(x, y, marker, color=colour, markersize=10, zorder=3, markeredgecolor="white")
    if PLAIN in points and DISTILLED in points:
        shape = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", points[DISTILLED], points[PLAIN], arrowprops=shape, zorder=4)

    slowest = max((row["p90_ms"] or row["p50_ms"] for row in timed), default=1.0)
    top, bottom = (pick((y for _, y in points.values()), default=0.5) for pick in (max, min))
    room = max(0.35 * (top - bottom), 0.03)
    axes.set_xlim(0, 1.55 * slowest)  # room for the labels on the right
    axes.set_ylim(max(0, bottom - room), min(1, top + room))
    low, high = axes.get_ylim()
    order = sorted(timed, key=lambda row: row["map50_95"])
    heights = label_heights([points[row["name"]][1] for row in order], least=0.08 * (high - low), low=low, high=high)
    for row, height in zip(order, heights, strict=True):
        x, y = points[row["name"]]
        note = f"{row['map50_95']:.3f}, {row['p50_ms']:.1f} ms, {row['parameters'] / 1e6:.2f} M"
        axes.annotate(
            f"{row['name']}\n{note}",
            (row["p90_ms"] or x, y),
            ((row["p90_ms"] or x) + 0.07 * slowest, height),
            va="center",
            fontsize=9.5,
            arrowprops={
                "arrowstyle": "-",
                "color": "#bbbbbb",
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 6,
                "relpos": (0, 0.5),
            },
        )
    axes.set_xlabel(f"latency at {document['imgsz']} px: p50 [ms], line to p90\n{document['machine']['processor']}")
    axes.set_ylabel("accuracy: mAP50-95")
    axes.set_title(textwrap.fill(verdict(document), 62), fontsize=10.5, loc="left")
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_panel(axes: Axes, panel: Panel) -> None:
    """A picture with boxes in their classes' colours, edged in black so that they show on any ground."""
    from matplotlib.patches import Rectangle

    axes.imshow(panel["image"][..., ::-1])
    for x1, y1, x2, y2, _, kind in panel["boxes"]:
        for colour, width in (("black", 2.6), (COLOURS[int(kind) % len(COLOURS)], 1.5)):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
    axes.set_title(panel["title"], fontsize=9.5)
    axes.set_axis_off()


def legend(figure: Any, entries: list[tuple[str, str]]) -> None:
    """Name the classes' colours under the pictures."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in entries]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 5), frameon=False, fontsize=9.5)
