"""Line charts as SVG that takes its colours from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

ROLES = ("teacher", "assistant", "plain", "start", "student")
INK, GRID = "#010101", "#020202"  # stand for the page's text and rules
ROLE_COLOURS = {role: f"#0301{i:02}" for i, role in enumerate(ROLES)}
SERIES = tuple(f"#0401{i:02}" for i in range(8))
VARIABLES = {  # what each of them becomes in the page
    INK: "var(--ink)",
    GRID: "var(--rule)",
    **{colour: f"var(--{role})" for role, colour in ROLE_COLOURS.items()},
    **{colour: f"var(--series{i})" for i, colour in enumerate(SERIES)},
}
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # of the first eight lines, the next eight, ...
SIZE = (4.9, 3.1)  # inches: as wide as a phone's screen at the size of its text


class Line(NamedTuple):
    """One line of a chart, or one level over its whole width if it has a single value and no positions."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    level: bool = False


def series(index: int) -> str:
    """The colour of the line of this index."""
    return SERIES[index % len(SERIES)]


def role_colour(role: str) -> str:
    """The colour of a model by its role; all assistants have one."""
    return ROLE_COLOURS.get(role.rstrip("0123456789"), INK)


def line_chart(lines: Sequence[Line], meaning: str, log: bool = False, zero: bool = False) -> str:
    """Draw lines over epochs as SVG.

    Args:
        lines: in the order of the legend.
        meaning: of the vertical axis.
        log: a logarithmic vertical axis.
        zero: mark the level 0.

    Returns:
        An `<svg>` element without a fixed size; empty where there is nothing to draw.
    """
    if not any(line.y for line in lines):
        return ""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    look = {"svg.fonttype": "none", "svg.hashsalt": meaning, "font.size": 9, "text.color": INK, "axes.labelcolor": INK}
    look |= {"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": GRID, "grid.color": GRID}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for i, line in enumerate(lines):
            dash = DASHES[i // len(SERIES) % len(DASHES)]
            if line.level:
                axes.axhline(line.y[0], color=line.colour, linewidth=1.3, linestyle=(0, (5, 3)), label=line.label)
            else:
                marker = "o" if len(line.x) < 25 else None
                axes.plot(
                    line.x, line.y, color=line.colour, linewidth=1.9, linestyle=dash, marker=marker, markersize=3,
                    label=line.label,
                )  # fmt: skip
        if zero:
            axes.axhline(0, color=INK, linewidth=0.8)
        if log:
            axes.set_yscale("log")
        axes.set_ylabel(meaning)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.grid(axis="y", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5, handlelength=1.6)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return embedded(buffer.getvalue(), meaning)


def embedded(svg: str, label: str) -> str:
    """An SVG file's element for a page: without header, metadata and size, with the page's colours."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    head, rest = element.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    for colour, variable in VARIABLES.items():
        rest = rest.replace(colour, variable)
    rest = re.sub(r" font-family: [^;]*;", "", rest)  # the page's own
    return f'{head} role="img" aria-label="{label}">{rest}'
