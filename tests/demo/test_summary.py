"""The summary of the demo: its table, verdict and plot."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolo_mkd.demo import summary
from yolo_mkd.plotting import label_heights


def row(name: str, accuracy: float, p50_ms: float | None = 3.0, p90_ms: float | None = 3.5) -> dict:
    figures = {"parameters": 678374, "gflops": 0.11, "map50_95": accuracy, "map50": accuracy + 0.2, "bytes": 2_800_000}
    return {"name": name, "p50_ms": p50_ms, "p90_ms": p90_ms, **figures}


def document(plain: float, distilled: float, **latency: float | None) -> dict:
    rows = [row("teacher", 0.56, 6.2), row("plain student", plain), row("distilled student", distilled, **latency)]
    pictures = {"train": 48, "unlabelled": 432, "val": 120, "seed": 0}
    machine = {"processor": "a processor"}
    return {"imgsz": 160, "names": ["nut", "bolt"], "machine": machine, "pictures": pictures, "rows": rows}


@pytest.mark.parametrize(
    ("plain", "distilled", "word", "figure"),
    [
        (0.4, 0.4, "is as accurate as the plain one", "+0.000"),
        (0.381, 0.412, "gained 0.031 mAP50-95 against the plain one", "+0.031"),
        (0.412, 0.381, "lost 0.031 mAP50-95 against the plain one", "-0.031"),
    ],
)
def test_the_verdict_names_a_gain_or_a_loss(plain: float, distilled: float, word: str, figure: str) -> None:
    text = summary.summary_table(document(plain, distilled))
    assert (
        f"seed: the distilled student {word}, with the same 48 labelled images, and 432 without labels beside them."
        in text
    )
    assert text.splitlines()[4].split() == ["distilled", "-", "plain", figure, figure]


def test_a_verdict_has_one_seed_and_the_interval_over_eight_from_the_results() -> None:
    text = summary.verdict(document(0.1, 0.9))
    assert text.startswith("This run, one seed: ")
    assert text.endswith("Over eight paired seeds with epochs=50: +0.036 [+0.035, +0.038], mean and 95 % interval.")
    results = (Path(__file__).parents[2] / "RESULTS.md").read_text(encoding="utf-8")
    assert "| +0.036 [+0.035, +0.038] |" in results[results.index("\n## The demo\n") :]


def test_every_model_has_one_line_with_its_figures_below_their_headers() -> None:
    lines = summary.summary_table(document(0.381, 0.412)).splitlines()
    assert lines[0].split() == ["model", "parameters", "GFLOPs", "mAP50-95", "mAP50", "p50", "ms", "p90", "ms", "MB"]
    assert lines[1].split() == ["teacher", "678,374", "0.11", "0.560", "0.760", "6.20", "3.50", "2.80"]
    ends = [lines[0].index(head) + len(head) for head in ("parameters", "mAP50-95", "MB")]
    assert all(line[end - 1].isdigit() and line[end : end + 1].strip() == "" for line in lines[1:4] for end in ends)


def test_a_latency_that_was_not_measured_is_a_dash() -> None:
    lines = summary.summary_table(document(0.381, 0.412, p50_ms=None, p90_ms=None)).splitlines()
    assert lines[3].split()[-3:] == ["-", "-", "2.80"]


@pytest.mark.parametrize(
    ("wanted", "heights"),
    [
        ([], []),
        ([0.2, 0.5], [0.2, 0.5]),  # far enough apart: as wanted
        ([0.5, 0.5, 0.5], [0.5, 0.6, 0.7]),  # the same point three times
        ([0.94, 0.96], [0.85, 0.95]),  # too near the upper end
        ([0.01, 0.3], [0.05, 0.3]),  # too near the lower end
    ],
)
def test_labels_are_spread_until_none_overlaps(wanted: list[float], heights: list[float]) -> None:
    assert label_heights(wanted, least=0.1, low=0, high=1) == pytest.approx(heights)


def test_the_plot_shows_the_images_and_their_boxes(tmp_path) -> None:
    green = np.zeros((40, 40, 3), np.uint8)
    green[:] = (0, 200, 40)  # B G R
    boxes = np.array([[5, 5, 35, 35, 0.9, 1]])
    found: summary.Panel = {"image": green, "title": "found", "boxes": boxes}
    missed: summary.Panel = {"image": green, "title": "missed", "boxes": boxes[:0]}
    bare = cv2.imread(str(summary.draw_summary(document(0.3, 0.4), tmp_path / "bare.png")))
    strips = [[found, missed], [missed, missed]]
    full = cv2.imread(str(summary.draw_summary(document(0.3, 0.4), tmp_path / "new" / "full.png", strips)))
    is_green, is_blue = ((full == colour).all(2) for colour in ((0, 200, 40), (0xE9, 0xB4, 0x56)))
    assert not (bare == (0, 200, 40)).all(2).any()
    assert is_green.mean() > 0.2
    half = full.shape[0] // 2
    assert is_blue[:half].sum() > 300  # the box of class 1, in the upper row
    assert is_blue[half:].sum() > 0  # its entry in the legend
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["full.png"]  # no partial file is left


def test_the_plot_can_be_drawn_without_latencies(tmp_path) -> None:
    without = document(0.3, 0.4)
    for line in without["rows"]:
        line["p50_ms"] = line["p90_ms"] = None
    assert summary.draw_summary(without, tmp_path / "summary.png").stat().st_size > 1000
