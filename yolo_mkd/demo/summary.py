"""The summary of the demo, a table and a plot, both made from demo.json."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from yolo_mkd import report
from yolo_mkd.plotting import COLOURS, label_heights, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN, DISTILLED = "plain student", "distilled student"
MARKERS = {"teacher": ("s", "#000000"), PLAIN: ("o", "#E69F00"), DISTILLED: ("o", "#0072B2")}
OTHER_MARKER = ("D", "#767676")  # assistants
# distilled - plain with the demo's default arguments, measured by benchmarks/demo.py: RESULTS.md, The demo
MEASURED = "Over eight paired seeds with epochs=50: +0.036 [+0.035, +0.038], mean and 95 % interval."


class ModelRow(TypedDict):
    """The figures of one model; p50_ms and p90_ms are None if too few runs were timed."""

    name: str
    parameters: int
    gflops: float
    map50_95: float
    map50: float
    p50_ms: float | None
    p90_ms: float | None
    bytes: int


class Summary(TypedDict):
    """The fields of demo.json that the summary is made from.

    Attributes:
        imgsz: image size at which accuracy and latency were measured [pixels].
        names: the classes, in order.
        machine: as `report.machine` returns it.
        pictures: numbers of images: train (labelled), unlabelled and val, and the seed of the labelled ones.
        rows: of the models, `plain student` and `distilled student` among them.
        minutes: duration of the demo.
    """

    imgsz: int
    names: list[str]
    machine: dict[str, Any]
    pictures: dict[str, int]
    rows: list[ModelRow]
    minutes: float


class Panel(TypedDict):
    """One image with one model's detections.

    Attributes:
        image: B G R, H W 3 uint8.
        title: the model's name.
        boxes: x1, y1, x2, y2 in pixels, confidence, class, N 6.
    """

    image: np.ndarray
    title: str
    boxes: np.ndarray


def summary_table(document: Summary) -> str:
    """The figures as text, a line a model, then the difference that distillation made and the verdict.

    Args:
        document: the contents of demo.json.
    """
    rows = []
    for row in document["rows"]:
        rows.append(
            [
                row["name"],
                f"{row['parameters']:,}",
                f"{row['gflops']:.2f}",
                f"{row['map50_95']:.3f}",
                f"{row['map50']:.3f}",
                *("-" if ms is None else f"{ms:.2f}" for ms in (row["p50_ms"], row["p90_ms"])),
                f"{row['bytes'] / 1e6:.2f}",
            ]
        )
    plain, distilled = students(document)
    gains = [distilled["map50_95"] - plain["map50_95"], distilled["map50"] - plain["map50"]]
    rows.append(["distilled - plain", "", "", *(f"{gain:+.3f}" for gain in gains), "", "", ""])
    headers = ["model", "parameters", "GFLOPs", "mAP50-95", "mAP50", "p50 ms", "p90 ms", "MB"]
    return f"{report.table(rows, headers)}\n\n{verdict(document)}"


def verdict(document: Summary) -> str:
    """The difference of this run's one seed, what both were trained on, and the interval over eight seeds."""
    plain, distilled = students(document)
    change = distilled["map50_95"] - plain["map50_95"]
    if abs(change) < 0.0005:  # not visible in three decimals
        found = "is as accurate as"
    else:
        found = f"{'gained' if change > 0 else 'lost'} {abs(change):.3f} mAP50-95 against"
    data = document["pictures"]
    same = f"with the same {data['train']} labelled images, and {data['unlabelled']} without labels beside them"
    return f"This run, one seed: the distilled student {found} the plain one, {same}. {MEASURED}"


def students(document: Summary) -> tuple[ModelRow, ModelRow]:
    """The figures of the plain student and of the distilled one."""
    rows = {row["name"]: row for row in document["rows"]}
    return rows[PLAIN], rows[DISTILLED]


def draw_summary(document: Summary, path: str | Path, strips: Sequence[Sequence[Panel]] = ()) -> Path:
    """Draw accuracy against latency, and beside it the models' detections in a few images.

    Args:
        document: the contents of demo.json.
        path: of the plot; its suffix names the format.
        strips: one row of panels for each image, all of the same length.

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
        add_class_legend(right, [(document["names"][k], COLOURS[k % len(COLOURS)]) for k in found])
    else:
        left = figure
    draw_points(left.subplots(), document)
    return save(figure, Path(path))


def draw_points(axes: Axes, document: Summary) -> None:
    """Draw one labelled point a model, and an arrow from the plain student to the distilled one."""
    timed = [row for row in document["rows"] if row["p50_ms"] is not None]
    points = {row["name"]: (row["p50_ms"] or 0.0, row["map50_95"]) for row in timed}
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

    ends = {row["name"]: row["p90_ms"] or points[row["name"]][0] for row in timed}
    slowest = max(ends.values(), default=1.0)
    top, bottom = (pick((y for _, y in points.values()), default=0.5) for pick in (max, min))
    room = max(0.35 * (top - bottom), 0.03)
    axes.set_xlim(0, 1.55 * slowest)  # room for the labels on the right
    axes.set_ylim(max(0, bottom - room), min(1, top + room))
    low, high = axes.get_ylim()
    order = sorted(timed, key=lambda row: row["map50_95"])
    heights = label_heights([points[row["name"]][1] for row in order], least=0.08 * (high - low), low=low, high=high)
    for row, height in zip(order, heights, strict=True):
        x, y = points[row["name"]]
        note = f"{row['map50_95']:.3f}, {x:.1f} ms, {row['parameters'] / 1e6:.2f} M"
        axes.annotate(
            f"{row['name']}\n{note}",
            (ends[row["name"]], y),
            (ends[row["name"]] + 0.07 * slowest, height),
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
    """Draw an image with boxes in their classes' colours, with a black edge so that they contrast with any image."""
    from matplotlib.patches import Rectangle

    axes.imshow(panel["image"][..., ::-1])
    for x1, y1, x2, y2, _, label in panel["boxes"]:
        for colour, width in (("black", 2.6), (COLOURS[int(label) % len(COLOURS)], 1.5)):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
    axes.set_title(panel["title"], fontsize=9.5)
    axes.set_axis_off()


def add_class_legend(figure: Any, entries: list[tuple[str, str]]) -> None:
    """Add a legend of the classes' colours below the images."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colour, edgecolor="black", label=name) for name, colour in entries]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 5), frameon=False, fontsize=9.5)
