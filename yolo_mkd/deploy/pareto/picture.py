"""A Pareto document as a picture: mAP against latency, one panel per machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from yolo_mkd.deploy.pareto.rows import ParetoDocument, ParetoRow
from yolo_mkd.plotting import COLOURS, label_heights, save
from yolo_mkd.settings import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Format = tuple[str | None, str | None]  # format and precision
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Point(NamedTuple):
    """A row with both a latency and an mAP."""

    p50_ms: float
    map50_95: float
    p90_ms: float | None
    row: ParetoRow


def points_of(rows: Iterable[ParetoRow]) -> list[Point]:
    """The rows that have both a latency and an mAP."""
    return [
        Point(row["p50_ms"], row["map50_95"], row["p90_ms"], row)
        for row in rows
        if row["p50_ms"] is not None and row["map50_95"] is not None
    ]


def draw_pareto(document: ParetoDocument, path: str | Path) -> Path:
    """Draw mAP against latency, one panel per machine: a colour per model, a marker per format, a line for the front.

    Args:
        document: what `pareto` returned.
        path: the picture to write; its suffix determines the format.

    Returns:
        The path written.

    Raises:
        BadInput: no row has both a latency and an mAP.
    """
    from matplotlib.figure import Figure

    points = points_of(document["rows"])
    if not points:
        raise BadInput("no file has both an mAP and a latency: give both its export report and its time report")
    machines = [machine for machine in document["machines"] if any(p.row["machine"] == machine for p in points)]
    models = {checkpoint_of(p.row): model_name(p.row) for p in reversed(points)}
    formats = list(dict.fromkeys((p.row["format"], p.row["precision"]) for p in points))
    colours = {model: COLOURS[k % len(COLOURS)] for k, model in enumerate(models)}
    markers = {one: MARKERS[k % len(MARKERS)] for k, one in enumerate(formats)}
    figure = Figure(figsize=(6.4 * len(machines) + 0.8, 5.6), dpi=150, layout="constrained")
    for axes, machine in zip(figure.subplots(1, len(machines), squeeze=False)[0], machines, strict=True):
        draw_machine(axes, [p for p in points if p.row["machine"] == machine], colours, markers)
        axes.set_title(machine, fontsize=10.5, loc="left")
    all_stable = all(p.row["stable"] for p in points)
    handles = legend_handles({name: colours[model] for model, name in models.items()}, markers, all_stable)
    figure.legend(handles=handles, loc="outside lower center", ncols=3 * len(machines), frameon=False, fontsize=9)
    return save(figure, Path(path))


def legend_handles(colours: dict[str, str], markers: dict[Format, str], all_stable: bool) -> list[Line2D]:
    """The entries of the legend.

    Args:
        colours: by model.
        markers: by format and precision.
        all_stable: every measurement was stable.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", marker="o", color=colour, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color="#555555", label=" ".join(filter(None, one)))
        for one, marker in markers.items()
    ]
    handles.append(Line2D([], [], color="#888888", linestyle="--", label="Pareto front"))
    if not all_stable:
        handles.append(
            Line2D([], [], linestyle="", marker="o", markerfacecolor="white", color="#555555", label="not stable")
        )
    return handles


def checkpoint_of(row: ParetoRow) -> str:
    """The checkpoint of a row; its exports are drawn in one colour."""
    return str(row["source"] or row["name"])


def model_name(row: ParetoRow) -> str:
    """The model's name without the ending of its format."""
    return str(row["name"]).removesuffix(".onnx").removesuffix("_openvino_model").removesuffix("_ncnn_model")


def draw_machine(axes: Axes, points: list[Point], colours: dict[str, str], markers: dict[Format, str]) -> None:
    """Draw one machine's points, its front as a line, and a label at each point of the front."""
    for point in points:
        row = point.row
        colour, marker = colours[checkpoint_of(row)], markers[row["format"], row["precision"]]
        if point.p90_ms is not None:
            axes.plot([point.p50_ms, point.p90_ms], [point.map50_95] * 2, color=colour, linewidth=1.2, alpha=0.5)
        face = colour if row["stable"] else "white"
        axes.plot(point.p50_ms, point.map50_95, marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)
    front = sorted((p.p50_ms, p.map50_95, p.row["name"]) for p in points if p.row["front"])
    slowest, maps = max(p.p90_ms or p.p50_ms for p in points), [p.map50_95 for p in points]
    room = max(0.25 * (max(maps) - min(maps)), 0.02)
    axes.set_xlim(0, 1.1 * slowest)
    axes.set_ylim(max(0, min(maps) - room), min(1, max(maps) + room))
    axes.step([x for x, _, _ in front], [y for _, y, _ in front], "--", where="post", color="#888888", linewidth=1.1)
    low, high = axes.get_ylim()
    above = [y + 0.045 * (high - low) for _, y, _ in front]
    for (x, y, name), height in zip(front, label_heights(above, 0.05 * (high - low), low, high), strict=True):
        line = {"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.8}
        side = "left" if x < slowest / 2 else "right"
        axes.annotate(name, (x, y), (x, height), ha=side, va="center", fontsize=8.5, arrowprops=line, zorder=4)
    axes.set_xlabel("latency end to end: p50 [ms], line to p90")
    axes.set_ylabel("accuracy: mAP50-95")
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
