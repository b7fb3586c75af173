"""Cells: one training each of a data set, a student, a method and a seed, with a folder and a task of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd import chain, host
from yolo_mkd.cache.unlabelled import check_ratio, find_images
from yolo_mkd.chain.stages import validate
from yolo_mkd.evidence.compare.methods import Method, reference
from yolo_mkd.host.dry import silent
from yolo_mkd.host.runs import AUGMENTATION
from yolo_mkd.settings import BadInput, defaults, resolve

TASK, RESULT, LOG = "cell.yaml", "result.json", "log.txt"
SEEN = {*AUGMENTATION, "views", "teacher_imgsz"}  # what methods that share a teacher's record may not differ in


@dataclass(frozen=True)
class Trial:
    """One training, as `compare.yaml` and its own `cell.yaml` hold it.

    Attributes:
        name: its folder below that of the comparison: data/student/method-seed.
        data: the data set's label.
        student: the student's label.
        method: the method's name.
        seed: of start, order and augmentation.
        chain: whether yolo-mkd trains it, else Ultralytics alone.
        arguments: of that train.
        val: arguments of the one validation that all cells share.
        longer: where its epochs are found: the names of the plain cell and of the one whose cost it is given.
        pseudo: what it is to label first: teacher, unlabelled, and the ratio in the batches that it is compared with.
    """

    name: str
    data: str
    student: str
    method: str
    seed: int
    chain: bool
    arguments: dict[str, Any]
    val: dict[str, Any]
    longer: tuple[str, str] | None = None
    pseudo: dict[str, Any] | None = None


def build(
    root: Path, data: dict[str, str], students: dict[str, str], methods: Sequence[Method], seeds: Sequence[int],
    baseline: dict[str, Any], record: bool,
) -> tuple[list[Trial], dict[str, str]]:  # fmt: skip
    """All cells, each kind of them checked, in the order in which they run.

    Args:
        root: the comparison's folder.
        data: label and YAML file of each data set.
        students: label and file of each student.
        methods: what is compared.
        seeds: one cell of everything for each.
        baseline: arguments of train that all methods share.
        record: keep the teacher's words for all methods that can do with a record.

    Returns:
        The cells, and why some methods ask the teacher itself although `record` is given.

    Raises:
        BadInput: one of them could not train.
    """
    cells, live = [], {}
    paced = reference(methods)
    for label, file in data.items():
        for student, model in students.items():
            common = {**baseline, "data": file, "model": model}
            named: dict[str, tuple[Method, dict[str, Any]]] = {}
            for method in methods:
                arguments = arguments_of(method, common)
                try:
                    if method.stock:
                        to_label(method, common)
                        check_stock(arguments)
                    else:
                        arguments, why = recorded(method, arguments, record, root / "records" / label)
                        if why:
                            live[method.name] = why
                except BadInput as e:
                    raise BadInput(f"methods={method.name}: {e}") from e
                named[method.name] = method, arguments
            val = {"data": file, "imgsz": baseline.get("imgsz", 640), "batch": baseline.get("batch", 16)}
            val |= {k: baseline[k] for k in ("device", "workers") if k in baseline}
            for seed in seeds:
                place = {n: f"{label}/{student}/{slug(n, list(named))}-s{seed}" for n in named}
                for name, (method, arguments) in named.items():
                    whole = {
                        **arguments,
                        "seed": seed,
                        "project": str(root / place[name]),
                        "name": "run",
                        "exist_ok": True,
                    }
                    longer = (place["plain"], place[paced.name]) if method.base == "longer" and paced else None
                    cells.append(
                        Trial(
                            place[name], label, student, name, seed, not method.stock, whole, val, longer,
                            to_label(method, common),
                        )
                    )  # fmt: skip
    return cells, live


def arguments_of(method: Method, common: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments of train: what all share, then what it changes."""
    arguments = {**common, **method.changes}
    if not method.stock:
        return arguments
    theirs = {k: v for k, v in arguments.items() if k not in defaults() or k == "model"}
    return {**theirs, "distill_model": arguments["teacher"]} if method.base == "native" else theirs


def to_label(method: Method, common: dict[str, Any]) -> dict[str, Any] | None:
    """What a method of pseudo-labels needs beside the arguments of its training.

    Raises:
        BadInput: no unlabelled images are named, or none are there.
    """
    if method.base != "pseudo":
        return None
    given = {**defaults(), **common, **method.changes}
    if given["unlabelled"] is None:
        raise BadInput("unlabelled= is missing: write for example pseudo:unlabelled=frames")
    if given.get("fraction", 1) != 1:
        raise BadInput("fraction= would cut labelled and pseudo-labelled images alike: leave it out")
    find_images(given["unlabelled"])
    place = chain.absolute(str(given["unlabelled"]))
    ratio = check_ratio(given["unlabelled_ratio"])
    return {"teacher": str(given["teacher"]), "unlabelled": place, "ratio": ratio}


def check_stock(arguments: dict[str, Any]) -> None:
    """Check the arguments of a training by Ultralytics alone.

    Raises:
        BadInput: it would refuse them, or silently change them.
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
                f"Ultralytics needs a teacher with as many strides as the student: {len(teacher.stride)} are not "
                f"{len(model.stride)}: leave this method out"
            )


def recorded(method: Method, arguments: dict[str, Any], wanted: bool, records: Path) -> tuple[dict[str, Any], str]:
    """Check a method of ours, replaying the teacher where that is wanted and possible.

    Returns:
        Its arguments, and why it cannot replay the teacher although that is wanted.

    Raises:
        BadInput: it could not train either way.
    """
    own = resolve({k: v for k, v in arguments.items() if k in defaults()})
    special = slug(method.name) if set(method.changes) & SEEN else ""
    kept = {**arguments, "record": str(records.with_name(f"{records.name}-{special}") if special else records)}
    with silent():
        if own["record"] or wanted:
            try:
                validate(kept, "compare")
                return kept, ""
            except BadInput as e:
                if own["record"]:
                    raise
                validate(arguments, "compare")
                return arguments, str(e)
        validate(arguments, "compare")
    return arguments, ""


def slug(name: str, among: Sequence[str] = ()) -> str:
    """A method's name as a folder's, unlike that of any other method."""
    plain = [re.sub(r"[^\w.=-]+", "_", n) for n in among]
    own = re.sub(r"[^\w.=-]+", "_", name)
    return own if plain.count(own) < 2 else f"{own}-{list(among).index(name)}"


def labels(argument: str, files: Sequence[str]) -> dict[str, str]:
    """A short name for each file, by which tables and folders call it.

    Raises:
        BadInput: a file is named twice.
    """
    stems = [p.parent.parent.name if p.parent.name == "weights" else p.stem for p in map(Path, files)]
    found = {s if stems.count(s) == 1 else f"{Path(f).parent.name}-{s}": f for s, f in zip(stems, files, strict=True)}
    if len(found) < len(files):
        raise BadInput(f"{argument}= names {', '.join(files)}: two of these cannot be told apart: keep one of them")
    return found


def start(root: Path, cell: Trial, results: dict[str, dict[str, Any]]) -> str:
    """Write a cell's task, with its epochs where these depend on other cells.

    Returns:
        Why it cannot run, if so.
    """
    folder = root / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    if cell.longer and not (folder / TASK).exists():
        plain, other = (results[name] for name in cell.longer)
        if missing := [n for n, r in zip(cell.longer, (plain, other), strict=True) if r["status"] != "done"]:
            return f"its epochs follow from the cost of {missing[0]}, which failed"
        cell = replace(cell, arguments={**cell.arguments, **lengthened(cell.arguments, epochs_for(plain, other))})
    if not (folder / TASK).exists():
        partial = folder / f"{TASK}.part"
        partial.write_text(yaml.safe_dump(asdict(cell), sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(partial, folder / TASK)
    return ""


def epochs_for(plain: dict[str, Any], other: dict[str, Any]) -> int:
    """How many epochs of plain training cost what the other training cost; one at least."""
    return max(1, round(other["cost_s"] / (plain["cost_s"] / plain["epochs"])))


def lengthened(arguments: dict[str, Any], epochs: int) -> dict[str, int]:
    """The length of a training, and of its end without mosaic in proportion: the end can decide what is learned.

    Args:
        arguments: of a training.
        epochs: how many it is to have.
    """
    asked, end = (arguments.get(k, host.arguments()[k]) for k in ("epochs", "close_mosaic"))
    return {"epochs": epochs, "close_mosaic": round(end * epochs / asked)}


def result(root: Path, cell: Trial) -> dict[str, Any] | None:
    """What became of a cell, if it has ended."""
    file = root / cell.name / RESULT
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
