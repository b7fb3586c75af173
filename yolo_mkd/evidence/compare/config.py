"""What is asked for: the arguments of a comparison, everything checked and nothing written, as a plan of its cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from yolo_mkd import chain, host, report
from yolo_mkd.chain.stages import validate
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.evidence.compare.methods import ablation, read_all
from yolo_mkd.evidence.compare.trials import Trial, build, labels
from yolo_mkd.host.dry import silent
from yolo_mkd.settings import KD_OPTIONS, BadInput, defaults, refuse_unknown, resolve

SCHEMA = "yolo-mkd/comparison/2"
OWN = {"methods", "seeds", "record", "latency", "parallel", "ray", "json"}
REFERENCES = {"compare": ("plain", "native"), "ablate": ("plain", "mkd", "recorded")}  # what a method is compared with
NOT_SHARED = OWN | {"data", "model", "project", "name"}  # what is not an argument of every cell's training
MODELS = ("teacher", "assistant")  # besides the students
SETTINGS = [*TERMS, *(k for k in KD_OPTIONS if k not in {"preset", "record", "record_limit"})]  # of what is learned
REFUSED = {
    **dict.fromkeys(
        (*TERMS, "preset", "calibrate", "gate"), "belongs to a method: write for example methods=plain,mkd:"
    ),
    **dict.fromkeys(("distill_model", "dis"), "belongs to a method: write methods=native or native:dis=2"),
    "seed": "is given by seeds=",
    "teacher_epochs": "would train a teacher in every cell: train one first, and give its .pt as teacher=",
    "time": "would give all methods the same time: give epochs=, and methods=longer for equal cost",
    "save_dir": "would put all cells in one folder: use project= and name=",
    "exist_ok": "could mix two comparisons: choose another name=, or go on with resume=",
    "task": "is the student's own: leave it out",
}


def lay_out(arguments: dict[str, Any], verb: str, root: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Check all that is asked for, and plan its cells.

    Args:
        arguments: the user's.
        verb: compare or ablate.
        root: the comparison's folder, if it is there already.

    Returns:
        The folder, and what its `compare.yaml` is to say.

    Raises:
        BadInput: a cell could not train, or an argument is unknown or not the comparison's.
    """
    refuse_unknown(arguments, {*OWN, *defaults(), *host.arguments()}, verb)
    for key, value in arguments.items():
        if key in REFUSED:
            raise BadInput(f"{key}= {REFUSED[key]}" + (f"{key}={value}" if REFUSED[key].endswith(":") else ""))
    baseline = {k: v for k, v in arguments.items() if k not in NOT_SHARED}
    refuse_uneven(baseline)
    record = arguments.get("record", False)
    if not isinstance(arguments.get("latency", False), bool):
        raise BadInput(f"latency={arguments['latency']} is neither true nor false")
    if not isinstance(record, bool):
        raise BadInput(f"record={record}: a comparison keeps its records in its own folder: give true or false")
    if not arguments.get("data"):
        raise BadInput("data= is missing: give a data set's YAML file, or several with commas")
    seeds = seeds_of(arguments.get("seeds", 3))
    if verb == "compare":
        methods = read_all(arguments.get("methods", "plain,longer,native,mkd"), host.arguments())
    elif "methods" in arguments:
        raise BadInput("methods= are ablate's own: leave it out, or use yolo-mkd compare")
    data = [chain.absolute(str(host.check_data(f)["yaml_file"])) for f in listed(arguments["data"])]
    named = listed(arguments.get("model", defaults()["model"]))
    students = [chain.absolute(host.find_model("model", f)) for f in named]
    whole = "recorded" if record else "mkd"
    if verb == "ablate":
        baseline["teacher"] = teacher_of(arguments)
        found = [acting({**baseline, "data": d, "model": s}, whole) for d in data for s in students]
        everywhere = [term for term in found[0] if all(term in terms for terms in found)]
        methods = read_all(ablation(everywhere, whole), host.arguments())
    if any(m.hears for m in methods):
        baseline["teacher"] = teacher_of(arguments)
    if baseline.get("assistant") not in {None, "none", "auto"}:
        baseline["assistant"] = ",".join(map(chain.absolute, listed(baseline["assistant"])))
    if root is None:
        root = host.run_folder(arguments.get("project"), arguments.get("name") or verb, exist_ok=False).resolve()
    shared = {"plots": False, "verbose": False, **baseline}
    cells, live = build(root, labels("data", data), labels("model", students), methods, seeds, shared, record)
    teacher = baseline.get("teacher")
    return root, {
        "schema": SCHEMA,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "verb": verb,
        "asked": arguments,
        "command": command(verb, arguments),
        "files": {"data": data, "model": students, **{k: baseline[k] for k in MODELS if k in baseline}},
        "versions": report.versions(),
        "methods": {m.name: m.changes for m in methods},
        "settings": settings_of(cells),
        "references": [n for n in REFERENCES[verb] if n in {m.name for m in methods}],
        "seeds": seeds,
        "device": baseline.get("device"),
        "teacher": {"file": teacher, "sha256": report.sha256(teacher)} if teacher else None,
        "live": live,
        "replayed": list(dict.fromkeys(c.method for c in cells if c.chain and c.arguments.get("record"))),
        "latency": arguments.get("latency", False),
        "cells": [asdict(c) for c in cells],
    }


def extend(root: Path, plan: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Plan more methods and seeds for a comparison; the cells that are there stay as they are.

    Args:
        root: its folder.
        plan: what its `compare.yaml` says.
        more: `methods` and `seeds` to add, as the user gives them.

    Raises:
        BadInput: one of them cannot train, or `longer` would no longer be paced by the same method.
    """
    asked = {**plan["asked"], "seeds": sorted({*plan["seeds"], *seeds_of(more.get("seeds", plan["seeds"]))})}
    if plan["verb"] == "compare" or "methods" in more:
        asked["methods"] = list(dict.fromkeys([*plan["methods"], *listed(more.get("methods", []))]))
    _, whole = lay_out({**asked, **plan["files"]}, plan["verb"], root)
    there = {cell["name"]: cell for cell in plan["cells"]}
    for cell in whole["cells"]:
        cell["arguments"]["model"] = host.write_architecture(cell["arguments"]["model"], root / "models")
        before = there.get(cell["name"], {}).get("longer")
        if before and list(before) != list(cell["longer"]):
            named = joined(more["methods"])
            raise BadInput(f"methods={named} would change what longer is given: start a new comparison")
    kept = {"started": plan["started"], "asked": asked, "command": command(plan["verb"], asked)}
    return {**whole, **kept, "cells": [there.get(cell["name"], cell) for cell in whole["cells"]]}


def settings_of(cells: Iterable[Trial]) -> dict[str, dict[str, Any]]:
    """What each distilled method learns by, its preset and the defaults filled in."""
    found = {}
    for method, arguments in {c.method: c.arguments for c in cells if c.chain}.items():
        own = resolve(arguments)
        found[method] = {name: own[name] for name in SETTINGS}
    return found


def refuse_mixed(root: Path, plan: dict[str, Any]) -> None:
    """Refuse cells that would not compare with those that are there.

    Args:
        root: the comparison's folder.
        plan: what its `compare.yaml` says.

    Raises:
        BadInput: the packages, or the defaults and presets of the methods, are others than when it began.
    """
    if changed := [f"{k} {v}" for k, v in plan["versions"].items() if report.versions().get(k) != v]:
        raise BadInput(f"resume={root} was begun with {', '.join(changed)}: install that, or start a new comparison")
    for method, now in settings_of(Trial(**c) for c in plan["cells"]).items():
        before = plan["settings"][method]
        if changed := [f"{k}={before[k]}" for k in now if now[k] != before[k]]:
            raise BadInput(f"resume={root}: {method} meant {', '.join(changed)} then: start a new comparison")


def establish(root: Path, plan: dict[str, Any]) -> None:
    """Make the folder of a new comparison, with the architectures that stock Ultralytics could not read."""
    (root / "models").mkdir(parents=True)
    for cell in plan["cells"]:
        cell["arguments"]["model"] = host.write_architecture(cell["arguments"]["model"], root / "models")


def refuse_uneven(baseline: dict[str, Any]) -> None:
    """Refuse what would not be the same for every method, or not one device a cell.

    Raises:
        BadInput: batch or device.
    """
    batch, device = baseline.get("batch", 16), baseline.get("device")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch={batch} would give each method a batch of its own: give a number of images")
    if isinstance(device, list | tuple) or "," in str(device):
        raise BadInput(f"device={joined(device)}: a cell trains on one device: give one")


def teacher_of(arguments: dict[str, Any]) -> str:
    """The teacher's file.

    Raises:
        BadInput: it is missing or untrained.
    """
    named = arguments.get("teacher", defaults()["teacher"])
    found = host.find_model("teacher", named)
    if not found.endswith(".pt"):
        raise BadInput(f"teacher={named} is untrained: train it first, and give its .pt")
    return chain.absolute(found)


def acting(arguments: dict[str, Any], whole: str) -> list[str]:
    """The terms that act between the teacher and a student.

    Args:
        arguments: of a training.
        whole: `mkd`, or the preset whose terms they are.
    """
    preset = {} if whole == "mkd" else {"preset": whole}
    with silent():
        asked = validate({**arguments, **preset, "record": False}, "ablate")
    own, imgsz = asked.own, asked.theirs.get("imgsz", 640)
    student = host.build(own["model"], asked.data["nc"], asked.data["channels"], asked.data.get("kpt_shape"))
    spec = replace(host.model_spec(student, imgsz), names=asked.data["names"], channels=asked.data["channels"])
    teacher = host.model_spec(host.load_detector("teacher", own["teacher"], True), own["teacher_imgsz"] or imgsz)
    return [t.name for t in Distiller(spec, teacher, {n: own[n] for n in TERMS}).acting]


def seeds_of(given: Any) -> list[int]:
    """The seeds from `seeds=`: how many, from 0 on, or which.

    Raises:
        BadInput: neither.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return list(range(given))
    words = listed(given) if isinstance(given, str | list | tuple) else []
    if not words or not all(w.isdecimal() for w in words) or len(set(words)) < len(words):
        raise BadInput(f"seeds={joined(given)}: give how many, such as seeds=3, or which, such as seeds=0,1,5")
    return [int(w) for w in words]


def command(verb: str, arguments: dict[str, Any]) -> str:
    """The command line of these arguments."""
    return " ".join(["yolo-mkd", verb, *(f"{k}={joined(v)}" for k, v in arguments.items())])


def listed(given: Any) -> list[str]:
    """The words of a value that may hold several, with commas or as a list."""
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    return [str(w).strip() for w in words if str(w).strip()]


def joined(given: Any) -> str:
    """A value as the command line takes it."""
    return ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
