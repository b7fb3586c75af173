"""The picture of accuracy along the run: a line a method over its training cost, with a band over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd import plotting
from yolo_mkd.evidence.compare.plots import MARKERS, TITLES, finish_axes, new_figure
from yolo_mkd.evidence.compare.schema import Comparison, CurvePoint
from yolo_mkd.evidence.compare.tables import TIME_COLUMNS, shorten
from yolo_mkd.evidence.compare.time_to_accuracy import accuracies, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = 200  # positions of a line
Curves = dict[str, list[list[CurvePoint]]]  # of each method, one a seed


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Draw accuracy against cost along the run, a panel for each data set, student and head.

    Args:
        comparison: as `compare` returns it.
        path: of the image; not written if no trial has a curve.
    """
    panels = curve_panels(comparison["cells"])
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(7 * columns, 4.2 * lines)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, ((title, name), curves) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, curves, name)
        axes.set_title(f"{title}: {TITLES[name]}", fontsize=10, loc="left")
    plotting.save(figure, path)


def curve_panels(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Curves]:
    """The curves of each panel by its title and accuracy; panels without curves are left out."""
    panels: dict[tuple[str, str], Curves] = {}
    for title in dict.fromkeys(f"{c['student']} on {c['data']}" for c in cells):
        for name in TIME_COLUMNS:
            curves: Curves = {}
            for cell in (c for c in cells if f"{c['student']} on {c['data']}" == title):
                if curve := points_of(cell.get("curve", []), name):
                    curves.setdefault(cell["method"], []).append(curve)
            if curves:
                panels[title, name] = curves
    return panels


def draw_panel(axes: Axes, curves: Curves, name: str) -> None:
    """Draw a line a method with a band of one standard deviation, and plain's final accuracy.

    Args:
        axes: to draw on.
        curves: by method.
        name: the accuracy that is drawn.
    """
    plain = curves.get("plain")
    unit = float(np.mean([c[-1]["cost_s"] for c in plain])) if plain else 1.0
    if plain:
        final = float(np.mean([accuracies(c, name)[-1] for c in plain]))
        axes.axhline(final, color=MARKERS["plain"][1], linestyle="--", linewidth=1, label="plain's final")
    ours = [m for m in curves if m not in MARKERS]
    colours = {m: plotting.COLOURS[-1 - i % len(plotting.COLOURS)] for i, m in enumerate(ours)}
    for method, own in curves.items():
        colour = MARKERS[method][1] if method in MARKERS else colours[method]
        cost, scores = aligned(own, name)
        mean = scores.mean(0)
        axes.plot(cost / unit, mean, color=colour, linewidth=1.6, label=shorten(method))
        if len(own) > 1:
            deviation = scores.std(0, ddof=1)
            axes.fill_between(cost / unit, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("cost of training until then, as a multiple of plain's whole run" if plain else "cost [s]")
    axes.set_ylabel("mAP50-95, mean ± standard deviation")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5)
    finish_axes(axes)


def aligned(curves: Sequence[Sequence[CurvePoint]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curves of one method at equal costs: costs N [s], and accuracies, seeds x N, where all seeds have them.

    Args:
        curves: one a seed, in the order of the run.
        name: the accuracy.
    """
    start, end = max(c[0]["cost_s"] for c in curves), min(c[-1]["cost_s"] for c in curves)
    cost = np.linspace(start, max(start, end), DRAWN)
    scores = [np.interp(cost, [p["cost_s"] for p in c], accuracies(c, name)) for c in curves]
    return cost, np.array(scores, dtype=np.float64)
