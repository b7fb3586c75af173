"""After training: did it help, by how much, at what cost? Methods x students x data sets x seeds, trained and compared.

Every cell is a run in a process and a folder of its own, so one that breaks is a row that says so, and a comparison
that is killed goes on where it was.
"""

from __future__ import annotations

import json as json_text
import shutil
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd import chain, host, report
from yolo_mkd.evidence.compare import executors as running
from yolo_mkd.evidence.compare import latency, plots, tables
from yolo_mkd.evidence.compare.config import SCHEMA, establish, extend, lay_out, refuse_mixed
from yolo_mkd.evidence.compare.findings import FIGURES, mean_rows, notes, rows_of
from yolo_mkd.evidence.compare.trials import RESULT, Trial, result
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput

ON_RESUME = {"resume", "methods", "seeds", "parallel", "ray", "json"}
PLAN = "compare.yaml"


def compare(**arguments: Any) -> dict[str, Any]:
    """Train a student in several ways and say which is better, by how much and at what cost.

    Args:
        **arguments: those of train, the same for every method, and:
            data, model: one, or several with commas.
            methods: plain (stock Ultralytics), longer (plain, for the cost of mkd), native (Ultralytics' own
                distillation), mkd (the defaults), only (no term but those named), or a preset. `mkd-relation` leaves
                a term out, `mkd:soft=1:lr0=0.01` changes arguments; commas between methods.
            seeds: how many, or which (0,1,5).
            record: true lets the teacher speak once for all methods that can do with its record.
            latency: true exports and times each student too, for accuracy against latency.
            parallel: cells at a time.
            ray: a Ray cluster's address, or auto.
            project, name: where the comparison's folder is; json: a copy of its report.
            resume: the folder of an interrupted comparison, or of a finished one that methods= and seeds= add to.

    Returns:
        What `compare.json` says: `rows`, one for each data set, student and method; `mean` over them; `cells`; `notes`.

    Raises:
        BadInput: an argument, file or data set cannot work; nothing has been trained then.
    """
    return carry_out(arguments, "compare")


def ablate(**arguments: Any) -> dict[str, Any]:
    """Take the method apart: plain, all acting terms, all but one of them, and each alone.

    Args:
        **arguments: those of compare without methods. With record=true the preset recorded is taken apart, and the
            whole ablation asks the teacher once.

    Returns:
        What `compare` returns.

    Raises:
        BadInput: as `compare`.
    """
    return carry_out(arguments, "ablate")


def carry_out(arguments: dict[str, Any], verb: str) -> dict[str, Any]:
    """Plan a comparison or open one, run its cells, and write down what came out."""
    parallel, ray = arguments.get("parallel"), arguments.get("ray")
    if parallel is not None and (isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1):
        raise BadInput(f"parallel={parallel} is no number of cells: use for example parallel=2")
    resumed = arguments.get("resume")
    root, plan = go_on(arguments) if resumed else lay_out(arguments, verb)
    if ray and str(plan["device"]) not in {"None", "cpu"}:
        raise BadInput(f"device={plan['device']}: leave it out with ray=, which gives out the devices")
    pool = running.RayExecutor(str(ray), parallel) if ray else running.LocalExecutor(parallel or 1)
    if not resumed:
        establish(root, plan)
    save(root, plan)
    cells = [Trial(**cell) for cell in plan["cells"]]
    LOGGER.info(f"M-KD: {len(cells)} cells in {chain.shortest(root)}, each with its log.txt")
    for method, why in plan["live"].items():
        LOGGER.warning(f"M-KD: {method} asks the teacher itself, not its record: {why}")
    try:
        results = running.run_all(root, cells, pool)
    except KeyboardInterrupt:
        LOGGER.warning(f"M-KD: interrupted; go on with yolo-mkd {verb} resume={chain.shortest(root)}")
        raise
    timed = latency.measure(cells, results) if plan["latency"] else []
    document = write(root, {**plan, "latency": timed}, cells, results, pool.slots)
    if arguments.get("json"):
        shutil.copy(root / "compare.json", arguments["json"])
    LOGGER.info(
        f"{tables.text(document)}\n\nM-KD: written to {chain.shortest(root)}: compare.md, .json, .csv, pictures"
    )
    return document


def go_on(arguments: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Open a comparison to go on with it or to add to it; cells that failed are to run again.

    Raises:
        BadInput: there is none, its teacher, the packages or the defaults are others now, or an argument cannot change.
    """
    if extra := sorted(set(arguments) - ON_RESUME):
        raise BadInput(
            f"{extra[0]}= cannot change while a comparison goes on: with resume= give only "
            f"{', '.join(sorted(ON_RESUME))}"
        )
    named = Path(str(arguments["resume"]))
    file = named if named.name == PLAN else named / PLAN
    if not file.is_file():
        raise BadInput(f"resume={named}: no {PLAN} there: give the folder of an interrupted comparison")
    try:
        plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise BadInput(f"resume={file} is damaged: {host.one_line(e)}") from e
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise BadInput(f"resume={file} was not written by this version ({SCHEMA}): start a new comparison")
    teacher = plan["teacher"]
    if teacher and (not Path(teacher["file"]).is_file() or report.sha256(teacher["file"]) != teacher["sha256"]):
        raise BadInput(f"resume={file}: its teacher {teacher['file']} is gone or has changed: put the same file back")
    root = file.parent.resolve()
    more: dict[str, Any] = {k: arguments[k] for k in ("methods", "seeds") if k in arguments}
    results = {c["name"]: result(root, Trial(**c)) for c in plan["cells"]}
    if more or any(r is None or r["status"] != "done" for r in results.values()):
        refuse_mixed(root, plan)
    if more:
        plan = extend(root, plan, more)
    for name, found in results.items():
        if found and found["status"] != "done":
            (root / name / RESULT).unlink()
    return root, plan


def save(root: Path, plan: dict[str, Any]) -> None:
    """Write `compare.yaml`, whole or not at all."""
    partial = root / f"{PLAN}.part"
    partial.write_text(yaml.safe_dump(plan, sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(root / PLAN)


def write(
    root: Path, plan: dict[str, Any], cells: list[Trial], results: dict[str, dict[str, Any]], together: int
) -> dict[str, Any]:
    """Write the report: `compare.json`, and what is drawn from it."""
    rows = rows_of(cells, results, plan["references"])
    figures: dict[str, Any] = {
        **{k: plan[k] for k in ("command", "started", "methods", "settings", "references", "seeds", "teacher")},
        **{k: plan[k] for k in ("live", "replayed", "latency")},
        "devices": sorted({r["device"] for r in results.values() if r["status"] == "done"}),
        "together": together,
        "rows": rows,
        "mean": mean_rows(rows, plan["references"]),
        "cells": [raw(cell, results[cell.name]) for cell in cells],
    }
    figures["notes"] = notes(figures)
    file = report.write(root / "compare.json", "compare", figures)
    document: dict[str, Any] = json_text.loads(file.read_text(encoding="utf-8"))
    tables.write_csv(root / "compare.csv", document)
    plots.differences(document, root / "differences.png")
    plots.accuracy_cost(document, root / "cost.png")
    plots.accuracy_latency(document, root / "latency.png")
    (root / "compare.md").write_text(tables.markdown(document), encoding="utf-8")
    return document


def raw(cell: Trial, found: dict[str, Any]) -> dict[str, Any]:
    """A cell's figures, or why it has none."""
    place = {"data": cell.data, "student": cell.student, "method": cell.method, "seed": cell.seed}
    if found["status"] != "done":
        return {**place, "failed": found["reason"]}
    measured = {name: figure(found) for name, figure in FIGURES.items()}
    return {**place, **measured, **{k: found[k] for k in ("epochs", "train_s", "cost_s")}}
