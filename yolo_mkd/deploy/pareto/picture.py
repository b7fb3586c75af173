"""A document of pareto as a picture: mAP against latency, one panel a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_mkd.deploy.pareto import drawable
from yolo_mkd.plotting import COLOURS, label_heights, save
from yolo_mkd.settings import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def picture(document: dict[str, Any], path: str | Path) -> Path:
    """Draw mAP against latency, one panel a machine: colour is the model, marker the format, the line is the front.

    Args:
        document: what `pareto` returned.
        path: the picture to write; its suffix says the format.

    Returns:
        The path written.

    Raises:
        BadInput: no row has both a latency and an mAP.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = [r for r in document["rows"] if drawable(r)]
    if not rows:
        raise BadInput("no file has both an mAP and a latency: give its reports of export and of time")
    places = [place for place in document["machines"] if any(r["machine"] == place for r in rows)]
    models = {model_of(r): model_name(r) for r in reversed(rows)}
    kinds = list(dict.fromkeys((r["format"], r["precision"]) for r in rows))
    colours = {model: COLOURS[k % len(COLOURS)] for k, model in enumerate(models)}
    markers = {one: MARKERS[k % len(MARKERS)] for k, one in enumerate(kinds)}
    figure = Figure(figsize=(6.4 * len(places) + 0.8, 5.6), dpi=150, layout="constrained")
    for axes, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        draw(axes, [r for r in rows if r["machine"] == place], colours, markers)
        axes.set_title(place, fontsize=10.5, loc="left")
    keys = [
        Line2D([], [], linestyle="", marker="o", color=colours[model], label=name) for model, name in models.items()
    ]
    keys += [
        Line2D([], [], linestyle="", marker=mark, color="#555555", label=" ".join(filter(None, one)))
        for one, mark in markers.items()
    ]
    keys += [Line2D([], [], color="#888888", linestyle="--", label="front: nothing beats these")]
    if not all(r["stable"] for r in rows):
        keys += [Line2D([], [], linestyle="", marker="o", markerfacecolor="white", color="#555555", label="not stable")]
    figure.legend(handles=keys, loc="outside lower center", ncols=3 * len(places), frameon=False, fontsize=9)
    return save(figure, Path(path))


def model_of(found: dict[str, Any]) -> str:
    """What is drawn in one colour: the exports of one checkpoint."""
    return str(found["source"] or found["name"])


def model_name(found: dict[str, Any]) -> str:
    """The model's name without its format's ending."""
    return str(found["name"]).removesuffix(".onnx").removesuffix("_openvino_model").removesuffix("_ncnn_model")


def draw(axes: Axes, rows: list[dict[str, Any]], colours: dict[str, str], markers: dict[Any, str]) -> None:
    """One machine's points, its front as a line, and a label at each point of the front."""
    for r in rows:
        colour, marker = colours[model_of(r)], markers[r["format"], r["precision"]]
        if r["p90_ms"] is not None:
            axes.plot([r["p50_ms"], r["p90_ms"]], [r["map50_95"]] * 2, color=colour, linewidth=1.2, alpha=0.5)
        face = colour if r["stable"] else "white"
        axes.plot(r["p50_ms"], r["map50_95"], marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)
    front = sorted((r["p50_ms"], r["map50_95"], r["name"]) for r in rows if r["front"])
    slowest, values = max(r["p90_ms"] or r["p50_ms"] for r in rows), [r["map50_95"] for r in rows]
    room = max(0.25 * (max(values) - min(values)), 0.02)
    axes.set_xlim(0, 1.1 * slowest)
    axes.set_ylim(max(0, min(values) - room), min(1, max(values) + room))
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
