"""Trials: each is one training of a student with a method, a seed and a data set, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from yolo_mkd import chain, documents, host, report
from yolo_mkd.cache.unlabelled import find_images
from yolo_mkd.chain.stages import validate
from yolo_mkd.distill.sources import find_teachers, is_detector
from yolo_mkd.evidence.compare.methods import Method, cost_reference
from yolo_mkd.evidence.compare.schema import TrialResult
from yolo_mkd.evidence.compare.trial import DAMAGED, Trial, check_task
from yolo_mkd.host.dry import silent
from yolo_mkd.host.runs import AUGMENTATION
from yolo_mkd.settings import BadInput, check_argument, defaults, resolve

TASK, RESULT, LOG = "cell.yaml", "result.json", "log.txt"
WHEN_DONE = {  # fields of the result of a trial that has ended
    *("best", "last", "parameters", "epochs", "train_s", "cost_s", "whole_s", "start", "batches", "device"),
}
CACHE_KEYS = {*AUGMENTATION, "views", "teacher_imgsz"}  # methods that share a teacher cache must agree in these


@dataclass(frozen=True)
class TrialGrid:
    """What the trials are made of.

    Attributes:
        root: the comparison's folder.
        data: label and YAML file of each data set.
        students: label and file of each student.
        methods: that are compared.
        seeds: one trial of everything for each.
        baseline: arguments of train that all methods share.
        record: share a teacher cache among the methods that support it.
    """

    root: Path
    data: dict[str, str]
    students: dict[str, str]
    methods: Sequence[Method]
    seeds: Sequence[int]
    baseline: dict[str, Any]
    record: bool


@dataclass(frozen=True)
class CheckedMethod:
    """A method whose arguments have been checked for one data set and student.

    Attributes:
        method: as parsed.
        arguments: of its train, without seed and folder.
        pseudo: as `Trial.pseudo`.
        live: why it runs the teacher although a cache is wanted; empty if it does not.
    """

    method: Method
    arguments: dict[str, Any]
    pseudo: dict[str, Any] | None
    live: str


def build_trials(grid: TrialGrid) -> tuple[list[Trial], dict[str, str]]:
    """All trials in the order in which they run; every method is checked with every data set and student.

    Args:
        grid: what the trials are made of.

    Returns:
        The trials, and by method why it runs the teacher although `record` is given.

    Raises:
        BadInput: one of them could not train.
    """
    trials: list[Trial] = []
    live: dict[str, str] = {}
    for label, file in grid.data.items():
        for student, model in grid.students.items():
            common = {**grid.baseline, "data": file, "model": model}
            checked = [check_method(m, common, grid.record, grid.root / "records" / label) for m in grid.methods]
            live |= {c.method.name: c.live for c in checked if c.live}
            for seed in grid.seeds:
                trials += seed_trials(grid, label, student, checked, seed)
    return trials, live


def check_method(method: Method, common: dict[str, Any], record: bool, cache: Path) -> CheckedMethod:
    """Check one method with one data set and student.

    Args:
        method: to check.
        common: arguments of train that all methods share.
        record: whether a teacher cache is wanted.
        cache: its folder.

    Raises:
        BadInput: it could not train; the message names the method.
    """
    arguments = method_arguments(method, common)
    try:
        if method.stock:
            pseudo = pseudo_label_task(method, common)
            check_stock(arguments)
            return CheckedMethod(method, arguments, pseudo, "")
        arguments, live = cached_arguments(method, arguments, record, cache)
        return CheckedMethod(method, arguments, None, live)
    except BadInput as e:
        raise BadInput(f"methods={method.name}: {e}") from e


def seed_trials(grid: TrialGrid, data: str, student: str, checked: Sequence[CheckedMethod], seed: int) -> list[Trial]:
    """The trials of one data set, student and seed, one a method.

    Args:
        grid: what all trials are made of.
        data: label of the data set.
        student: label of the student.
        checked: the methods.
        seed: of the trials.
    """
    baseline, names = grid.baseline, [c.method.name for c in checked]
    val = {"data": grid.data[data], "imgsz": baseline.get("imgsz", 640), "batch": baseline.get("batch", 16)}
    val |= {k: baseline[k] for k in ("device", "workers") if k in baseline}
    folders = {name: f"{data}/{student}/{folder_name(name, names)}-s{seed}" for name in names}
    matched = cost_reference(grid.methods)
    trials = []
    for each in checked:
        method, folder = each.method, folders[each.method.name]
        longer = (folders["plain"], folders[matched.name]) if method.base == "longer" and matched else None
        place = {"seed": seed, "project": str(grid.root / folder), "name": "run", "exist_ok": True}
        trial = Trial(
            name=folder,
            data=data,
            student=student,
            method=method.name,
            seed=seed,
            chain=not method.stock,
            arguments={**each.arguments, **place},
            val=dict(val),
            longer=longer,
            pseudo=each.pseudo,
        )
        trials.append(trial)
    return trials


def method_arguments(method: Method, common: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments of train: those that all methods share, then those that it changes."""
    arguments = {**common, **method.changes}
    if not method.stock:
        return arguments
    stock = {k: v for k, v in arguments.items() if k not in defaults() or k == "model"}
    return {**stock, "distill_model": arguments["teacher"]} if method.base == "native" else stock


def pseudo_label_task(method: Method, common: dict[str, Any]) -> dict[str, Any] | None:
    """What a method with pseudo-labels needs beside the arguments of its training; None for any other method.

    Raises:
        BadInput: `unlabelled` is missing or has no images.
    """
    if method.base != "pseudo":
        return None
    given = {**defaults(), **common, **method.changes}
    if given["unlabelled"] is None:
        raise BadInput("unlabelled= is missing: write for example pseudo:unlabelled=frames")
    teachers = find_teachers(given["teacher"])
    if len(teachers) > 1 or not is_detector(teachers[0]):
        raise BadInput("pseudo needs one .pt as teacher=: leave the method out, or give one model")
    if given.get("fraction", 1) != 1:
        raise BadInput("fraction= would also drop pseudo-labelled images: remove fraction=")
    find_images(given["unlabelled"])
    place = chain.absolute(str(given["unlabelled"]))
    ratio = check_argument("unlabelled_ratio", given["unlabelled_ratio"])
    return {"teacher": str(given["teacher"]), "unlabelled": place, "ratio": ratio}


def check_stock(arguments: dict[str, Any]) -> None:
    """Check the arguments of a training by Ultralytics alone.

    Raises:
        BadInput: Ultralytics would refuse them, or change them without an error.
    """
    data = host.check_data(arguments["data"])
    student = host.find_model("model", arguments["model"])
    host.check_labels(data, host.task(student))
    model = host.build(student, data["nc"], data["channels"], data.get("kpt_shape"))
    host.check_imgsz(arguments.get("imgsz", 640), model, "model")
    host.check_arguments(arguments)
    if "distill_model" in arguments:
        teacher = host.load_detector("teacher", arguments["distill_model"])
        if len(teacher.stride) != len(model.stride):
            raise BadInput(
                f"Ultralytics' distillation needs a teacher with as many strides as the student, but it has "
                f"{len(teacher.stride)} and the student {len(model.stride)}: remove this method"
            )


def cached_arguments(
    method: Method, arguments: dict[str, Any], wanted: bool, cache: Path
) -> tuple[dict[str, Any], str]:
    """Check a method of ours, with a teacher cache if that is wanted and possible.

    Args:
        method: to check.
        arguments: of its train.
        wanted: whether a teacher cache is wanted.
        cache: its folder; methods that differ in `CACHE_KEYS` get one of their own beside it.

    Returns:
        Its arguments, and why it cannot use a teacher cache although that is wanted.

    Raises:
        BadInput: it could not train either way.
    """
    own = resolve({k: v for k, v in arguments.items() if k in defaults()})
    with silent():
        if not (own["record"] or wanted):
            validate(arguments, "compare")
            return arguments, ""
        if set(method.changes) & CACHE_KEYS:
            cache = cache.with_name(f"{cache.name}-{folder_name(method.name)}")
        cached = {**arguments, "record": str(cache)}
        try:
            validate(cached, "compare")
            return cached, ""
        except BadInput as e:
            if own["record"]:
                raise
            validate(arguments, "compare")
            return arguments, str(e)


def folder_name(method: str, among: Sequence[str] = ()) -> str:
    """A method's name as a folder name; with `among`, all methods, different from the folder of any other method."""
    simplified = [re.sub(r"[^\w.=-]+", "_", name) for name in among]
    own = re.sub(r"[^\w.=-]+", "_", method)
    return own if simplified.count(own) < 2 else f"{own}-{list(among).index(method)}"


def short_labels(argument: str, files: Sequence[str]) -> dict[str, str]:
    """Short labels for files, used in tables and folder names: a dict from label to file.

    Args:
        argument: that the files were given for, for the message.
        files: absolute paths.

    Raises:
        BadInput: a file is named twice.
    """
    stems = [p.parent.parent.name if p.parent.name == "weights" else p.stem for p in map(Path, files)]
    found = {s if stems.count(s) == 1 else f"{Path(f).parent.name}-{s}": f for s, f in zip(stems, files, strict=True)}
    if len(found) < len(files):
        raise BadInput(f"{argument}={','.join(files)}: two of these have the same name and folder: rename one of them")
    return found


def write_task(root: Path, trial: Trial, results: Mapping[str, TrialResult]) -> str:
    """Write a trial's `cell.yaml`, with the number of epochs if that depends on other trials.

    Args:
        root: the comparison's folder.
        trial: to be written; an existing file is left as it is.
        results: of the trials that have ended, by name.

    Returns:
        Why it cannot run; empty if it can.
    """
    file = root / trial.name / TASK
    if file.exists():
        return ""
    if trial.longer:
        failed = [name for name in trial.longer if results[name]["status"] != "done"]
        if failed:
            return f"its epochs follow from the cost of {failed[0]}, which failed"
        plain, matched = (results[name] for name in trial.longer)
        length = scaled_length(trial.arguments, equal_cost_epochs(plain, matched))
        trial = replace(trial, arguments={**trial.arguments, **length})
    report.write_text(file, yaml.safe_dump(asdict(trial), sort_keys=False, allow_unicode=True))
    return ""


def equal_cost_epochs(plain: TrialResult, other: TrialResult) -> int:
    """How many epochs of plain training cost what the other training cost; at least one."""
    return max(1, round(other["cost_s"] / (plain["cost_s"] / plain["epochs"])))


def scaled_length(arguments: Mapping[str, Any], epochs: int) -> dict[str, int]:
    """The arguments for another number of epochs, with the last epochs without mosaic in proportion.

    Args:
        arguments: of a training.
        epochs: wanted.
    """
    given, without_mosaic = (arguments.get(k, host.arguments()[k]) for k in ("epochs", "close_mosaic"))
    return {"epochs": epochs, "close_mosaic": round(without_mosaic * epochs / given)}


def moved(value: Any, before: Path, now: Path) -> Any:
    """A value whose absolute paths below a folder that was moved or copied are those of its place now.

    Args:
        value: text, or dicts and lists of it; anything else is returned as it is.
        before: the folder's path when the value was written.
        now: its path.
    """
    if isinstance(value, dict):
        return {k: moved(v, before, now) for k, v in value.items()}
    if isinstance(value, list):
        return [moved(v, before, now) for v in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(before):
        return str(now / Path(value).relative_to(before))
    return value


def roots(folder: Path, task: Mapping[str, Any]) -> tuple[Path, Path]:
    """The folder of a trial's comparison when the trial was written, and now.

    Args:
        folder: the trial's.
        task: the contents of its `cell.yaml`, or its entry in `compare.yaml`.
    """
    depth = len(Path(task["name"]).parts) - 1
    return Path(task["arguments"]["project"]).parents[depth], folder.resolve().parents[depth]


def load_task(folder: Path) -> dict[str, Any]:
    """The contents of a trial's `cell.yaml`; where its comparison was moved, it and the trial's chain are updated.

    Args:
        folder: the trial's.
    """
    file = folder / TASK
    task: dict[str, Any] = documents.read_yaml(file, str(file), DAMAGED)
    check_task(task, f"{file} is damaged")
    before, now = roots(folder, task)
    if before == now:
        return task
    for file in (folder / "run" / "chain.yaml", folder / TASK):  # the chain first, or a kill would leave it unchanged
        if file.is_file():
            content = moved(documents.read_yaml(file, str(file), DAMAGED), before, now)
            report.write_text(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return dict(content)


def load_result(root: Path, trial: Trial) -> TrialResult | None:
    """The result of a trial; None if it has not ended."""
    file = root / trial.name / RESULT
    if not file.is_file():
        return None
    result: TrialResult = documents.validated(
        TypeAdapter(TrialResult), documents.read_json(file, str(file), DAMAGED), str(file), DAMAGED
    )
    missing = WHEN_DONE - result.keys() if result["status"] == "done" else {"reason"} - result.keys()
    if missing:
        raise BadInput(f"{file} is damaged ({min(missing)}: it is missing): {DAMAGED}")
    if "weights" in result:  # of a trial that is done
        place = Path(result["weights"].rpartition(f"/{trial.name}/")[2])  # below the trial's folder, wherever that was
        if place.is_absolute() or ".." in place.parts:
            raise BadInput(f"{file} is damaged (weights: not in the folder of its trial): {DAMAGED}")
        result["weights"] = str(root / trial.name / place)
    return result
