"""The notes below the tables: how the figures were measured, and what would mislead if it were left out."""

from __future__ import annotations

from collections.abc import Sequence

from yolo_mkd.evidence.compare.findings import NMS_FREE
from yolo_mkd.evidence.compare.schema import Comparison, InputMatch, Row
from yolo_mkd.evidence.compare.statistics import CONFIDENCE

SAME_INPUTS = "for each seed the same initial weights and the same batches as plain, to the pixel"
LEARNED = 0.01  # mAP50-95 below which a student has learned nothing


def report_notes(comparison: Comparison) -> list[str]:
    """The notes of a report, one or two sentences each.

    Args:
        comparison: the report; its `notes` are not read.
    """
    rows = comparison["rows"]
    notes = [
        "mAP50-95 is that of best.pt, the checkpoint that Ultralytics selects by its own validation on the same "
        "images; `last` is that of last.pt. Both are validated alike: rect=False and otherwise Ultralytics' defaults, "
        "so through NMS."
    ]
    if any(NMS_FREE in r for r in rows):
        notes.append("Without NMS is the same best.pt through its one2one head, which `yolo-mkd export` prefers.")
    notes.append(interval_note(rows, len(comparison["seeds"])))
    notes.append(
        "Cost is that of the training loop without validation and set-up, as a multiple of plain's; for a chain, the "
        "sum of its stages. Training the teacher is not included. It is processor time on a CPU, so that other "
        "programs do not distort it, and wall-clock time on a GPU; `train s` is wall-clock time."
    )
    if any(r.get("to_plain") for r in rows):
        notes.append(
            "Time to plain's accuracy: the cost, and the images trained on, from which a run's mAP50-95 stays at or "
            "above that of plain's last.pt of the same seed, linear between the validated points, as a geometric mean "
            "of ratios to plain's own. Validation is outside the clock. A run that never holds it counts with its "
            "whole length: the ratio is then at least that, without an interval."
        )
    if comparison["replayed"]:
        methods = ", ".join(comparison["replayed"])
        notes.append(
            f"{methods}: trained from a cache of the teacher's outputs. The first trial filled the cache, and its "
            "cost includes that."
        )
    if comparison["together"] > 1:
        notes.append(
            f"{comparison['together']} trials ran at the same time and slowed each other down, so costs are rough."
        )
    scores = [r["map50_95"]["mean"] for r in rows if r["seeds"]]
    if scores and max(scores) < LEARNED:
        notes.append("No student has learned enough to compare methods: use more epochs=, or a trained .pt as model=.")
    notes += input_notes(rows)
    notes += [
        f"{method} runs the teacher in each step instead of reading its cache: {why}."
        for method, why in comparison["live"].items()
    ]
    for r in rows:
        for seed, why in r["failed"].items():
            notes.append(f"FAILED: {r['data']} {r['student']} {r['method']} seed {seed}: {why}")
    return notes


def interval_note(rows: Sequence[Row], seeds: int) -> str:
    """What the differences and intervals in the tables mean.

    Args:
        rows: of the report.
        seeds: how many.
    """
    if seeds == 1:
        return "One seed: there is no interval, and no difference here is evidence."
    count = sum(len(r.get("against", {})) for r in rows)
    note = (
        f"A difference is the mean over {seeds} paired seeds with its 95 % t interval; if the interval contains 0, the "
        "methods are not distinguishable."
    )
    if count > 5:
        note += f" Of {count} such intervals about {count * (1 - CONFIDENCE):.1f} miss the true value by chance."
    return note


def input_notes(rows: Sequence[Row]) -> list[str]:
    """How the inputs of each method's runs compare with plain's: initial weights, images, order, pixels."""
    matches: dict[str, list[InputMatch]] = {}
    for r in rows:
        if r["seeds"] and (match := r["same"]):
            matches.setdefault(r["method"], []).append(match)
    methods: dict[str, list[str]] = {}
    for method, found in matches.items():
        methods.setdefault(describe_deviations(found) or SAME_INPUTS, []).append(method)
    return [f"{', '.join(names)}: {text}." for text, names in methods.items()]


def describe_deviations(matches: Sequence[InputMatch]) -> str:
    """How the inputs of a method's runs differed from plain's; empty if they did not."""
    epochs = sum(m["epochs"] for m in matches)
    images = epochs - sum(m["images"] for m in matches)
    pixels = epochs - sum(m["pixels"] for m in matches)
    found = [] if all(m["start"] for m in matches) else ["other initial weights than plain"]
    if images:
        found.append(f"other images or another order than plain in {images} of {epochs} epochs")
    elif pixels:
        found.append(f"plain's images in plain's order, but augmented differently in {pixels} of {epochs} epochs")
    return " and ".join(found)
