"""From the results of trials to rows: one for each data set, student and method, and the mean over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, cast

from yolo_mkd.evidence.compare.schema import (
    CheckpointScores,
    Difference,
    Figure,
    InputMatch,
    MeanRow,
    Row,
    TrialResult,
)
from yolo_mkd.evidence.compare.statistics import DIGITS, mean_interval, paired_difference
from yolo_mkd.evidence.compare.time_to_accuracy import mean_time, time_to_plain
from yolo_mkd.evidence.compare.trials import Trial

NMS_FREE = "nms_free_map50_95"
TASK_FIGURES = {"mask_map50_95": "masks", "pose_map50_95": "keypoints"}  # what the head has beside boxes
FURTHER = {NMS_FREE: "without NMS", **TASK_FIGURES}  # figures with a table of their own, and its first header
ReadFigure = Callable[[TrialResult], float | None]
Results = dict[str, TrialResult]  # by the trial's name
Runs = dict[int, TrialResult]  # of one method, by seed


def nms_free_map(scores: CheckpointScores) -> float | None:
    """The mAP50-95 through the one2one head; None if the student has no such head."""
    return scores["nms_free"]["map50_95"] if "nms_free" in scores else None


FIGURES: dict[str, ReadFigure] = {  # by column of the tables
    "map50_95": lambda r: r["best"]["map50_95"],
    "map50": lambda r: r["best"]["map50"],
    "last_map50_95": lambda r: r["last"]["map50_95"],
    NMS_FREE: lambda r: nms_free_map(r["best"]),
    "mask_map50_95": lambda r: r["best"].get("mask_map50_95"),
    "pose_map50_95": lambda r: r["best"].get("pose_map50_95"),
}


def comparison_rows(trials: Sequence[Trial], results: Results, references: Sequence[str]) -> list[Row]:
    """One row for each data set, student and method, in the order of the trials.

    Args:
        trials: all trials of the comparison.
        results: of each trial, by name.
        references: methods that the others are compared with, seed by seed.
    """
    groups: dict[tuple[str, str], dict[str, Runs]] = {}
    for trial in trials:
        methods = groups.setdefault((trial.data, trial.student), {})
        methods.setdefault(trial.method, {})[trial.seed] = results[trial.name]
    return [
        method_row(data, student, method, methods, references)
        for (data, student), methods in groups.items()
        for method in methods
    ]


def method_row(data: str, student: str, method: str, methods: dict[str, Runs], references: Sequence[str]) -> Row:
    """The figures of one method among those of the same data set and student."""
    done = {name: {s: r for s, r in runs.items() if r["status"] == "done"} for name, runs in methods.items()}
    own, plain = done[method], done.get("plain", {})
    failed = {s: r["reason"] for s, r in methods[method].items() if r["status"] != "done"}
    row: Row = {"data": data, "student": student, "method": method, "seeds": sorted(own), "failed": failed}
    if not own:
        return row
    figures = {name: values for name, figure in FIGURES.items() if (values := figure_by_seed(own, figure))}
    ratios = [r["cost_s"] / plain[s]["cost_s"] for s, r in own.items() if s in plain]
    row.update(cast(Row, {name: mean_figure(values) for name, values in figures.items()}))
    row["epochs"] = round(fmean(r["epochs"] for r in own.values()), 1)
    row["train_s"] = round(fmean(r["train_s"] for r in own.values()), 2)
    row["cost"] = round(fmean(ratios), 3) if ratios else None
    row["parameters"] = next(iter(own.values()))["parameters"]
    row["against"] = {
        other: {name: paired_difference(v, figure_by_seed(done[other], FIGURES[name])) for name, v in figures.items()}
        for other in references
        if other in done and other != method
    }
    row["classes"] = {}
    for name in dict.fromkeys(c for r in own.values() for c in r["best"]["classes"]):
        ours = class_by_seed(own, name)
        change = paired_difference(ours, class_by_seed(plain, name))
        row["classes"][name] = {"mean": round(fmean(ours.values()), DIGITS), "change": change}
    times = {name: time_to_plain(own, plain, name) for name in ("map50_95", NMS_FREE)}
    row["to_plain"] = {name: found for name, found in times.items() if found}
    other_length = method.startswith("longer")
    row["same"] = None if method == "plain" or other_length else same_inputs(own, plain)
    return row


def mean_figure(values: Mapping[int, float]) -> Figure:
    """The mean and the standard deviation over the seeds, and the values themselves."""
    deviation = round(stdev(values.values()), DIGITS) if len(values) > 1 else None
    return {"mean": round(fmean(values.values()), DIGITS), "deviation": deviation, "by_seed": dict(values)}


def figure_by_seed(runs: Runs, figure: ReadFigure) -> dict[int, float]:
    """One figure of those runs that have it, by seed."""
    return {s: value for s, r in runs.items() if (value := figure(r)) is not None}


def class_by_seed(runs: Runs, name: str) -> dict[int, float]:
    """The mAP50-95 of a class in those runs whose validation has it, by seed."""
    return {s: r["best"]["classes"][name] for s, r in runs.items() if name in r["best"]["classes"]}


def same_inputs(own: Runs, plain: Runs) -> InputMatch | None:
    """Compare the inputs of a method's runs with those of the plain runs of the same seeds; None without such a run."""
    pairs = [(r, plain[s]) for s, r in own.items() if s in plain]
    if not pairs:
        return None
    epochs = [digests for ours, theirs in pairs for digests in zip(ours["batches"], theirs["batches"], strict=False)]
    return {
        "start": all(ours["start"] == theirs["start"] for ours, theirs in pairs),
        "epochs": len(epochs),
        "images": sum(ours[0] == theirs[0] for ours, theirs in epochs),
        "pixels": sum(ours[1] == theirs[1] for ours, theirs in epochs),
    }


def mean_rows(rows: Sequence[Row], references: Sequence[str]) -> list[MeanRow]:
    """The mean over data sets and students, a row a method; empty with one data set and one student.

    The differences of a seed are averaged over data sets and students first, and the interval is over the seeds: it
    covers another seed on these sets, and nothing about other sets.
    """
    groups = list(dict.fromkeys((r["data"], r["student"]) for r in rows))
    if len(groups) < 2:
        return []
    by_method: dict[str, dict[Any, Row]] = {method: {} for method in dict.fromkeys(r["method"] for r in rows)}
    for r in rows:
        if r["seeds"]:
            by_method[r["method"]][r["data"], r["student"]] = r
    complete = {m: own for m, own in by_method.items() if len(own) == len(groups)}  # else the means are not comparable
    return [mean_row(method, complete, references) for method in complete]


def mean_row(method: str, complete: Mapping[str, dict[Any, Row]], references: Sequence[str]) -> MeanRow:
    """The mean of one method over data sets and students, and its differences from the references.

    Args:
        method: one of `complete`.
        complete: rows by method, then by data set and student, of the methods that have all of these.
        references: methods to compare with.
    """
    own = complete[method]
    figures = [name for name in ("map50_95", *FURTHER) if all(name in r for r in own.values())]
    costs = [cost for r in own.values() if (cost := r["cost"]) is not None]
    against = {}
    for other in references:
        if other == method or other not in complete:
            continue
        base = complete[other]
        changes = {name: mean_difference(own, base, name) for name in figures if all(name in r for r in base.values())}
        if changes["map50_95"]:
            against[other] = changes
    found: MeanRow = {"method": method}
    means = {name: round(fmean(figure_of(r, name)["mean"] for r in own.values()), DIGITS) for name in figures}
    found.update(cast(MeanRow, means))
    found["cost"], found["against"] = round(fmean(costs), 3) if costs else None, against
    of_all = {n: [r["to_plain"][n] for r in own.values() if n in r["to_plain"]] for n in ("map50_95", NMS_FREE)}
    times = {n: mean_time(found_here) for n, found_here in of_all.items() if len(found_here) == len(own)}
    found["to_plain"] = {name: time for name, time in times.items() if time}
    return found


def mean_difference(own: Mapping[Any, Row], base: Mapping[Any, Row], figure: str) -> Difference | None:
    """The differences of each seed averaged over data sets and students, with the interval over the seeds."""
    gains = []
    for group in own:
        ours, theirs = (figure_of(rows[group], figure)["by_seed"] for rows in (own, base))
        gains.append({seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs})
    seeds = set.intersection(*map(set, gains))
    return mean_interval([fmean(gain[seed] for gain in gains) for seed in sorted(seeds)])


def figure_of(row: Row, name: str) -> Figure:
    """One of the figures of a row by its name, such as `map50_95`."""
    return cast(Figure, row[name])  # type: ignore[literal-required]
