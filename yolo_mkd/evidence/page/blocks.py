"""What a page is built of: values that the template prints as they are, and how figures are written."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_mkd.evidence.page.schema import ExportLook


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Node:
    """One model of the chain."""

    role: str
    name: str
    model: str
    parameters: str
    size: float  # diameter of its circle, as a share of the largest
    accuracy: str
    minutes: str
    teachers: str


@dataclass(frozen=True)
class Chart:
    """A drawing with the sentence below it."""

    svg: str
    title: str
    caption: str = ""


@dataclass(frozen=True)
class Tab:
    """One of several charts' groups, of which the reader sees one at a time."""

    name: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Bar:
    """A difference or a figure with its interval, as shares of the width of its axis."""

    name: str
    text: str
    left: float
    width: float
    mark: float
    zero: float
    state: str  # better, worse or unclear: the colour


@dataclass(frozen=True)
class BarGroup:
    """Bars on one axis."""

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class PageTable:
    """A table; cells are text. `links` holds a target for the first cell of each row, if there are any."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    links: Sequence[str] = ()


@dataclass
class Page:
    """All that the template prints.

    Attributes:
        kind: training, comparison or demo.
        name: of the run's folder.
        answer: whether distillation helped, in one sentence.
        caveat: what the answer rests on.
        where: where it helped and where it did not, a sentence each.
        tiles: figures at the top.
        nodes: the chain.
        bars: differences with intervals.
        tables: of the comparison.
        trials: of the comparison, with links.
        costs: charts of accuracy against cost and latency.
        tabs: the curves of each stage.
        gradients: the gradient shares of each stage and teacher.
        looks: what the models compute for validation images; None without.
        pictures: the files beside looks.json as data URIs, by name.
        looks_note: what the looks are of, or why there are none.
        exports: tables of exported files.
        export_charts: the accuracy that they keep against their latency.
        worst: the images on which they deviate most from their checkpoints.
        worst_pictures: the files beside exports.json as data URIs, by name.
        worst_notes: on files without such images.
        warnings: of the plan.
        plan: how the plan was found, or how to make one.
        notes: of the comparison.
        command: that made the run.
        facts: versions, machine and files.
    """

    kind: str
    name: str
    answer: str
    caveat: str = ""
    where: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    bars: list[BarGroup] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    trials: PageTable | None = None
    costs: list[Chart] = field(default_factory=list)
    tabs: list[Tab] = field(default_factory=list)
    gradients: list[Tab] = field(default_factory=list)
    looks: Any = None  # Looks, or None
    pictures: dict[str, str] = field(default_factory=dict)
    looks_note: str = ""
    exports: list[PageTable] = field(default_factory=list)
    export_charts: list[Chart] = field(default_factory=list)
    worst: list[ExportLook] = field(default_factory=list)
    worst_pictures: dict[str, str] = field(default_factory=dict)
    worst_notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    plan: str = ""
    notes: list[str] = field(default_factory=list)
    command: str = ""
    facts: list[PageTable] = field(default_factory=list)


def bar(name: str, text: str, interval: tuple[float, float, float], ends: tuple[float, float], state: str) -> Bar:
    """A bar of an interval (low, mean, high) on an axis between two ends."""
    low, high = ends
    width = (high - low) or 1.0
    at = [round(100 * (v - low) / width, 2) for v in (*interval, 0.0)]
    return Bar(name, text, at[0], round(at[2] - at[0], 2), at[1], at[3], state)


def axis_ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that shows these values and 0, with some room."""
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.06 * ((high - low) or 0.01)
    return low - room, high + room


def millions(count: float) -> str:
    """A number of parameters in millions."""
    return f"{count / 1e6:.2f} M"


def data_uri(file: Path) -> str:
    """A picture as a URI that holds it."""
    kind = "png" if file.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
