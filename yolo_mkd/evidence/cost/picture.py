"""A plot of the cost of each kind of training: one bar a kind, split into the parts of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_mkd.plotting import save

PART_COLOURS = {  # Okabe and Ito's
    **{"data": "#999999", "teacher": "#D55E00", "student": "#0072B2", "loss": "#56B4E9", "terms": "#CC79A7"},
    **{"backward": "#009E73", "update": "#F0E442"},
}


def picture(document: dict[str, Any], path: Path) -> Path:
    """Draw the parts of a step by kind of training, as multiples of a plain step.

    Args:
        document: a report of `yolo-mkd cost json=`.
        path: of the image; its suffix names the format.

    Returns:
        The path written.
    """
    from matplotlib.figure import Figure

    kinds = document["kinds"]
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(kinds)), dpi=150, layout="constrained")
    axes = figure.subplots()
    plain = sum(kinds["plain"]["parts"].values())
    for y, row in enumerate(kinds.values()):
        left = 0.0
        for part, seconds in row["parts"].items():
            label = part if y == 0 else None
            axes.barh(y, seconds / plain, left=left, color=PART_COLOURS[part], edgecolor="white", label=label)
            left += seconds / plain
        axes.annotate(f"{row['ratio']['mean']:.2f} x", (left, y), (4, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="#444444", linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(
        f"time of a step, plain = 1; {document['device']}, {document['machine']['processor']}", fontsize=8.5
    )
    title = (
        f"{document['student']} distilled from {document['teacher']}, {document['imgsz']} px, batch {document['batch']}"
    )
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(PART_COLOURS), frameon=False, fontsize=8.5)
    return save(figure, path)
