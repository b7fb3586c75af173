"""After training: accuracy and cost of several methods, for every student, data set and seed, with intervals.

Every trial is a run in a process and a folder of its own, so a failed one is listed with its error, and an interrupted
comparison can be resumed.
"""

from __future__ import annotations

import json as json_text
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter

from yolo_mkd import chain, documents, host, report
from yolo_mkd.distill.sources import checksum, find_teachers
from yolo_mkd.evidence.compare import curves, plots, tables
from yolo_mkd.evidence.compare.config import (
    SCHEMA,
    create_folder,
    extend_plan,
    plan_comparison,
    refuse_changed_settings,
)
from yolo_mkd.evidence.compare.executors import LocalExecutor, RayExecutor, run_trials
from yolo_mkd.evidence.compare.findings import FIGURES, comparison_rows, mean_rows
from yolo_mkd.evidence.compare.latency import measure_latency
from yolo_mkd.evidence.compare.notes import report_notes
from yolo_mkd.evidence.compare.schema import Comparison, ComparisonPlan, Latency, Row, TrialResult
from yolo_mkd.evidence.compare.tables import TIME_COLUMNS
from yolo_mkd.evidence.compare.trials import RESULT, Trial, check_task, load_result, moved, roots
from yolo_mkd.host import LOGGER
from yolo_mkd.locking import exclusive
from yolo_mkd.settings import BadInput, number

ON_RESUME = {"resume", "methods", "seeds", "parallel", "ray", "json"}
PLAN_FILE = "compare.yaml"
ADVICE = "restore the file, or start a new comparison"
FROM_PLAN = (  # fields of compare.yaml that compare.json repeats
    *("command", "started", "methods", "settings", "references", "seeds", "teacher", "live", "replayed"),
)


@host.permitting
def compare(**arguments: Any) -> Comparison:
    """Train a student with several methods, and report which is better, by how much and at what cost.

    Args:
        **arguments: those of train, the same for every method, and:
            data, model: one, or several separated by commas.
            methods: plain (stock Ultralytics), longer (plain, for the cost of mkd), native (Ultralytics' own
                distillation), mkd (the defaults), only (no term except those named), or a preset. `mkd-relation`
                leaves a term out, `mkd:soft=1:lr0=0.01` changes arguments; separate methods by commas.
            seeds: a number of seeds, or a list (0,1,5).
            record: true shares one teacher cache among all methods that support it.
            latency: true also exports and times each student, for accuracy against latency.
            parallel: number of trials at a time.
            ray: address of a Ray cluster, or auto.
            project, name: the comparison's folder; json: a copy of its report.
            resume: the folder of an interrupted comparison, or of a finished one to which methods= and seeds= add.

    Returns:
        The contents of `compare.json`: `rows`, one for each data set, student and method; `mean` over them; `cells`,
        one for each trial; `notes`.

    Raises:
        BadInput: an argument, file or data set cannot work; nothing has been trained then.
    """
    return run_comparison(arguments, "compare")


@host.permitting
def ablate(**arguments: Any) -> Comparison:
    """Compare plain, all acting terms, all except one of them, and each alone.

    Args:
        **arguments: those of compare without methods. With record=true the preset recorded is ablated, and all of its
            trials share one teacher cache.

    Returns:
        As `compare`.

    Raises:
        BadInput: as `compare`.
    """
    return run_comparison(arguments, "ablate")


def run_comparison(arguments: dict[str, Any], verb: str) -> Comparison:
    """Plan or resume a comparison, run its trials, and write its report."""
    report.check_writable("json", arguments.get("json"))
    if arguments.get("parallel") is not None:
        number("parallel", arguments["parallel"], low=1, whole=True, example=2)
    resumed = arguments.get("resume")
    root, plan = resume_comparison(arguments) if resumed else plan_comparison(arguments, verb)
    if arguments.get("ray") and str(plan["device"]) not in {"None", "cpu"}:
        raise BadInput(f"device={plan['device']} cannot be combined with ray=, which assigns devices: remove device=")
    if not resumed:
        create_folder(root, plan)
    with exclusive(root):
        if resumed:
            root, plan = resume_comparison(arguments)  # as it is now that no other process writes it
        report.write_text(root / PLAN_FILE, yaml.safe_dump(dict(plan), sort_keys=False, allow_unicode=True))
        comparison = run_plan(root, plan, arguments)
    if arguments.get("json"):
        shutil.copy(root / "compare.json", arguments["json"])
    LOGGER.info(
        f"{tables.comparison_text(comparison)}\n\n"
        f"M-KD: report written to {chain.shortest(root)}: compare.md, compare.json, compare.csv and plots"
    )
    from yolo_mkd.evidence.page import write_page_after  # it is made of this package's tables

    write_page_after(root)
    return comparison


def run_plan(root: Path, plan: ComparisonPlan, arguments: dict[str, Any]) -> Comparison:
    """Run the trials of a plan that have no result yet, measure latency if it is asked for, and write the report."""
    parallel, ray = arguments.get("parallel"), arguments.get("ray")
    executor = RayExecutor(str(ray), parallel) if ray else LocalExecutor(parallel or 1)
    trials = [Trial(**fields) for fields in plan["cells"]]
    LOGGER.info(f"M-KD: {len(trials)} trials in {chain.shortest(root)}, each with its log.txt")
    for method, why in plan["live"].items():
        LOGGER.warning(f"M-KD: {method} runs the teacher in each step instead of reading its cache: {why}")
    try:
        results = run_trials(root, trials, executor)
    except KeyboardInterrupt:
        LOGGER.warning(f"M-KD: interrupted; continue with yolo-mkd {plan['verb']} resume={chain.shortest(root)}")
        raise
    latency = measure_latency(trials, results) if plan["latency"] else []
    return write_report(root, plan, trials, results, latency, executor.slots)


def resume_comparison(arguments: dict[str, Any]) -> tuple[Path, ComparisonPlan]:
    """Open a comparison to continue it or to add to it; failed trials will run again.

    Args:
        arguments: `resume` and those of `ON_RESUME` that the user gives.

    Returns:
        The folder and the plan.

    Raises:
        BadInput: there is no comparison, its teacher, packages or defaults have changed, or an argument cannot change.
    """
    if extra := sorted(set(arguments) - ON_RESUME):
        raise BadInput(
            f"{extra[0]}= cannot change when a comparison is resumed: with resume= give only "
            f"{', '.join(sorted(ON_RESUME))}"
        )
    root, plan = load_plan(Path(str(arguments["resume"])))
    more: dict[str, Any] = {k: arguments[k] for k in ("methods", "seeds") if k in arguments}
    results = {fields["name"]: load_result(root, Trial(**fields)) for fields in plan["cells"]}
    if more or any(r is None or r["status"] != "done" for r in results.values()):
        refuse_changed_settings(root, plan)
    if more:
        plan = extend_plan(root, plan, more)
    for name, found in results.items():
        if found and found["status"] != "done":
            (root / name / RESULT).unlink()
    return root, plan


def load_plan(named: Path) -> tuple[Path, ComparisonPlan]:
    """The folder of a comparison and its plan.

    Args:
        named: the folder, or its `compare.yaml`.

    Raises:
        BadInput: there is no plan, it cannot be read, or its teacher has changed.
    """
    file = named if named.name == PLAN_FILE else named / PLAN_FILE
    if not file.is_file():
        raise BadInput(f"resume={named} contains no {PLAN_FILE}: give the folder of an interrupted comparison")
    named_file = f"resume={file}"
    plan = documents.read_yaml(file, named_file, ADVICE)
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise BadInput(f"{named_file} was not written by this version ({SCHEMA}): start a new comparison")
    documents.validated(TypeAdapter(ComparisonPlan), plan, named_file, ADVICE)
    for cell in plan["cells"]:
        check_task(cell, f"{named_file} is damaged")
    teacher = plan["teacher"]
    if teacher and checksum_now(teacher["file"]) != teacher["sha256"]:
        raise BadInput(f"resume={file}: its teacher {teacher['file']} is missing or has changed: restore the file")
    root = file.parent.resolve()
    plan["cells"] = [moved(cell, *roots(root / cell["name"], cell)) for cell in plan["cells"]]
    return root, cast(ComparisonPlan, plan)


def checksum_now(teachers: str) -> str:
    """The SHA-256 of a comparison's teachers, one or several with commas; empty where one is missing."""
    try:
        return checksum(*find_teachers(teachers))
    except BadInput:
        return ""


def write_report(
    root: Path,
    plan: ComparisonPlan,
    trials: Sequence[Trial],
    results: Mapping[str, TrialResult],
    latency: list[Latency],
    together: int,
) -> Comparison:
    """Write `compare.json`, and the tables and plots that are made from it.

    Args:
        root: the comparison's folder.
        plan: the contents of `compare.yaml`.
        trials: all of them.
        results: by the trial's name.
        latency: of the exported students.
        together: how many trials ran at a time.

    Returns:
        The contents of `compare.json`.
    """
    rows = comparison_rows(trials, dict(results), plan["references"])
    figures: dict[str, Any] = {
        **{k: plan[k] for k in FROM_PLAN},  # type: ignore[literal-required]
        "latency": latency,
        "devices": sorted({r["device"] for r in results.values() if r["status"] == "done"}),
        "together": together,
        "rows": rows,
        "mean": mean_rows(rows, plan["references"]),
        "cells": [trial_figures(trial, results[trial.name], rows) for trial in trials],
    }
    figures["notes"] = report_notes(cast(Comparison, figures))
    file = report.write(root / "compare.json", "compare", figures)
    comparison: Comparison = json_text.loads(file.read_text(encoding="utf-8"))
    tables.write_csv(root / "compare.csv", comparison)
    plots.draw_differences(comparison, root / "differences.png")
    plots.draw_accuracy_cost(comparison, root / "cost.png")
    curves.draw_curves(comparison, root / "curve.png")
    plots.draw_accuracy_latency(comparison, root / "latency.png")
    report.write_text(root / "compare.md", tables.comparison_page(comparison))
    return comparison


def trial_figures(trial: Trial, result: TrialResult, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one trial, or why it failed: a row of compare.csv, and its curve.

    Args:
        trial: to be reported.
        result: its result.
        rows: of the report, which hold the times to plain's final accuracy.
    """
    place = {"data": trial.data, "student": trial.student, "method": trial.method, "seed": trial.seed}
    if result["status"] != "done":
        return {**place, "failed": result["reason"]}
    figures = {name: figure(result) for name, figure in FIGURES.items()}
    labels = (trial.data, trial.student, trial.method)
    row = next(r for r in rows if (r["data"], r["student"], r["method"]) == labels)
    times: dict[str, float | None] = {}
    for figure, (cost, images) in TIME_COLUMNS.items():
        if found := row["to_plain"].get(figure):
            times[cost], times[images] = (found[k].get(trial.seed) for k in ("cost_s", "images_seen"))
    spent = {k: result[k] for k in ("epochs", "train_s", "cost_s")}
    return {**place, **figures, **spent, **times, "curve": result.get("curve", [])}
