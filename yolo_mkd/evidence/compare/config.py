"""The arguments of a comparison: checked without writing anything, and turned into a plan of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from yolo_mkd import chain, host, report
from yolo_mkd.chain.stages import validate
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.sources import checksum, find_teachers, is_detector
from yolo_mkd.evidence.compare.methods import Method, ablation_methods, parse_methods
from yolo_mkd.evidence.compare.schema import ComparisonPlan
from yolo_mkd.evidence.compare.trials import Trial, TrialGrid, build_trials, short_labels
from yolo_mkd.host.dry import silent
from yolo_mkd.settings import KD_OPTIONS, BadInput, defaults, refuse_unknown, resolve

SCHEMA = "yolo-mkd/comparison/2"
EQUAL_RELEASES = {"0.1.0", "0.2.0"}  # of yolo-mkd: they train bit-identically, so their trials can be mixed
OWN = {"methods", "seeds", "record", "latency", "parallel", "ray", "json"}
DEFAULT_METHODS = "plain,longer,native,mkd"
REFERENCES = {"compare": ("plain", "native"), "ablate": ("plain", "mkd", "recorded")}  # what a method is compared with
NOT_SHARED = OWN | {"data", "model", "project", "name"}  # everything else is an argument of every trial's training
MODELS = ("teacher", "assistant")  # besides the students
SETTINGS = [*TERMS, *(k for k in KD_OPTIONS if k not in {"preset", "record", "record_limit"})]  # that change the losses
REFUSED = {
    **dict.fromkeys(
        (*TERMS, "preset", "calibrate", "gate", "start"), "belongs to a method: write for example methods=plain,mkd:"
    ),
    **dict.fromkeys(("distill_model", "dis"), "belongs to a method: write methods=native or native:dis=2"),
    "seed": "is set by seeds=",
    **dict.fromkeys(("trust", "download"), "is not taken from a file: give it beside resume="),
    "teacher_epochs": "would train a teacher in every trial: train one first, and give its .pt as teacher=",
    "time": "would give all methods the same time: use epochs=, and methods=longer for equal cost",
    "save_dir": "would put all trials in one folder: use project= and name=",
    "exist_ok": "could mix two comparisons: choose another name=, or continue with resume=",
    "task": "follows from the student: remove it",
}


@dataclass(frozen=True)
class CheckedArguments:
    """The arguments of a comparison after all simple checks.

    Attributes:
        baseline: arguments of train that all methods share, with absolute paths.
        data: absolute paths of the data sets' YAML files.
        students: absolute paths of the students.
        methods: parsed.
        seeds: of the trials.
        record: share a teacher cache among the methods that support it.
        latency: export and time the students at the end.
    """

    baseline: dict[str, Any]
    data: list[str]
    students: list[str]
    methods: list[Method]
    seeds: list[int]
    record: bool
    latency: bool


def plan_comparison(arguments: dict[str, Any], verb: str, root: Path | None = None) -> tuple[Path, ComparisonPlan]:
    """Check all arguments, and plan the trials.

    Args:
        arguments: the user's.
        verb: compare or ablate.
        root: the comparison's folder, if it exists already.

    Returns:
        The folder, and the contents of its `compare.yaml`.

    Raises:
        BadInput: a trial could not train, or an argument is unknown or not for a comparison.
    """
    checked = check_arguments(arguments, verb)
    baseline = checked.baseline
    if root is None:
        root = host.run_folder(arguments.get("project"), arguments.get("name") or verb, exist_ok=False).resolve()
    grid = TrialGrid(
        root=root,
        data=short_labels("data", checked.data),
        students=short_labels("model", checked.students),
        methods=checked.methods,
        seeds=checked.seeds,
        baseline={"plots": False, "verbose": False, **baseline},
        record=checked.record,
    )
    trials, live = build_trials(grid)
    teacher = baseline.get("teacher")
    return root, {
        "schema": SCHEMA,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "verb": verb,
        "asked": arguments,
        "command": command_line(verb, arguments),
        "files": {"data": checked.data, "model": checked.students, **{k: baseline[k] for k in MODELS if k in baseline}},
        "versions": report.versions(),
        "methods": {m.name: m.changes for m in checked.methods},
        "settings": method_settings(trials),
        "references": [n for n in REFERENCES[verb] if n in {m.name for m in checked.methods}],
        "seeds": checked.seeds,
        "device": baseline.get("device"),
        "teacher": {"file": teacher, "sha256": checksum(*find_teachers(teacher))} if teacher else None,
        "live": live,
        "replayed": list(dict.fromkeys(t.method for t in trials if t.chain and t.arguments.get("record"))),
        "latency": checked.latency,
        "cells": [asdict(t) for t in trials],
    }


def check_arguments(arguments: dict[str, Any], verb: str) -> CheckedArguments:
    """Check the arguments of a comparison and find its files.

    Args:
        arguments: the user's.
        verb: compare or ablate.

    Raises:
        BadInput: an argument is unknown, not for a comparison, or cannot work.
    """
    refuse_unknown(arguments, {*OWN, *defaults(), *host.arguments()}, verb)
    refuse_method_arguments(arguments)
    record, latency = (check_switch(name, arguments.get(name, False)) for name in ("record", "latency"))
    baseline = {k: v for k, v in arguments.items() if k not in NOT_SHARED}
    check_batch_and_device(baseline)
    if not arguments.get("data"):
        raise BadInput("data= is missing: give a data set's YAML file, or several separated by commas")
    seeds = parse_seeds(arguments.get("seeds", 3))
    methods = []
    if verb == "compare":
        methods = parse_methods(arguments.get("methods", DEFAULT_METHODS), host.arguments())
    elif "methods" in arguments:
        raise BadInput("methods= cannot be given to yolo-mkd ablate, which sets it: remove it, or use yolo-mkd compare")
    data = [chain.absolute(str(host.check_data(f)["yaml_file"])) for f in split_values(arguments["data"])]
    named = split_values(arguments.get("model", defaults()["model"]))
    students = [chain.absolute(host.find_model("model", f)) for f in named]
    if verb == "ablate":
        baseline["teacher"] = trained_teacher(arguments)
        methods = plan_ablation(baseline, data, students, "recorded" if record else "mkd")
    if any(m.distilled for m in methods):
        baseline["teacher"] = trained_teacher(arguments)
    if baseline.get("assistant") not in {None, "none", "auto"}:
        baseline["assistant"] = ",".join(map(chain.absolute, split_values(baseline["assistant"])))
    return CheckedArguments(baseline, data, students, methods, seeds, record, latency)


def refuse_method_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments that belong to a method, or that the comparison sets.

    Raises:
        BadInput: one of them is given.
    """
    for key, value in arguments.items():
        if key in REFUSED:
            why = REFUSED[key]
            raise BadInput(f"{key}= {why}" + (f"{key}={value}" if why.endswith(":") else ""))


def check_switch(name: str, value: Any) -> bool:
    """A value that must be true or false.

    Raises:
        BadInput: it is neither.
    """
    if not isinstance(value, bool):
        hint = ": the teacher caches of a comparison are in its own folder" if name == "record" else ""
        raise BadInput(f"{name}={value} must be true or false{hint}")
    return value


def plan_ablation(baseline: dict[str, Any], data: Sequence[str], students: Sequence[str], whole: str) -> list[Method]:
    """The methods of an ablation, for the terms that act with every data set and student.

    Args:
        baseline: arguments of train that all methods share, the teacher included.
        data: the data sets' YAML files.
        students: their files.
        whole: the method that is ablated, `mkd` or `recorded`.
    """
    acting = [acting_terms({**baseline, "data": d, "model": s}, whole) for d in data for s in students]
    everywhere = [term for term in acting[0] if all(term in terms for terms in acting)]
    return parse_methods(ablation_methods(everywhere, whole), host.arguments())


def extend_plan(root: Path, plan: ComparisonPlan, more: dict[str, Any]) -> ComparisonPlan:
    """Add methods and seeds to a comparison; its existing trials stay as they are.

    Args:
        root: the comparison's folder.
        plan: the contents of its `compare.yaml`.
        more: `methods` and `seeds` to add, as the user gives them.

    Raises:
        BadInput: one of them cannot train, or `longer` would match the cost of another method.
    """
    extended = {**plan["asked"], "seeds": sorted({*plan["seeds"], *parse_seeds(more.get("seeds", plan["seeds"]))})}
    if plan["verb"] == "compare" or "methods" in more:
        extended["methods"] = list(dict.fromkeys([*plan["methods"], *split_values(more.get("methods", []))]))
    _, whole = plan_comparison({**extended, **plan["files"]}, plan["verb"], root)
    existing = {trial["name"]: trial for trial in plan["cells"]}
    for trial in whole["cells"]:
        trial["arguments"]["model"] = host.write_architecture(trial["arguments"]["model"], root / "models")
        before = existing.get(trial["name"], {}).get("longer")
        if before and list(before) != list(trial["longer"]):
            methods = join_values(more["methods"])
            raise BadInput(f"methods={methods} would change which cost longer matches: start a new comparison")
    whole["started"], whole["asked"] = plan["started"], extended
    whole["command"] = command_line(plan["verb"], extended)
    whole["cells"] = [existing.get(trial["name"], trial) for trial in whole["cells"]]
    return whole


def method_settings(trials: Iterable[Trial]) -> dict[str, dict[str, Any]]:
    """The settings of each distilled method, with defaults and preset filled in."""
    found = {}
    for method, arguments in {t.method: t.arguments for t in trials if t.chain}.items():
        own = resolve(arguments)
        found[method] = {name: own[name] for name in SETTINGS}
    return found


def refuse_changed_settings(root: Path, plan: ComparisonPlan) -> None:
    """Refuse further trials that could not be compared with the existing ones.

    Args:
        root: the comparison's folder.
        plan: the contents of its `compare.yaml`.

    Raises:
        BadInput: packages, defaults or presets have changed since the comparison began.
    """
    before, now = plan["versions"], report.versions()
    differing = {name for name, version in before.items() if now.get(name) != version}
    if {before.get("yolo-mkd"), now.get("yolo-mkd")} <= EQUAL_RELEASES:
        differing.discard("yolo-mkd")
    if changed := [f"{name} {version}" for name, version in before.items() if name in differing]:
        raise BadInput(f"resume={root} was begun with {', '.join(changed)}: install that, or start a new comparison")
    for method, settings in method_settings(Trial(**t) for t in plan["cells"]).items():
        began = plan["settings"][method]
        if changed := [f"{name}={began[name]}" for name in settings if settings[name] != began[name]]:
            raise BadInput(
                f"resume={root}: the defaults of {method} have changed since, it began with {', '.join(changed)}: "
                "start a new comparison"
            )


def create_folder(root: Path, plan: ComparisonPlan) -> None:
    """Create the folder of a new comparison, with the architectures that stock Ultralytics could not load."""
    (root / "models").mkdir(parents=True)
    for trial in plan["cells"]:
        trial["arguments"]["model"] = host.write_architecture(trial["arguments"]["model"], root / "models")


def check_batch_and_device(baseline: dict[str, Any]) -> None:
    """Refuse a batch size that could differ between methods, and more than one device.

    Raises:
        BadInput: batch or device.
    """
    batch, device = baseline.get("batch", 16), baseline.get("device")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch={batch} must be a number of images, so that it is the same for all methods: batch=16")
    if isinstance(device, list | tuple) or "," in str(device):
        raise BadInput(f"device={join_values(device)} must be one device, since a trial trains on one: device=0")


def trained_teacher(arguments: dict[str, Any]) -> str:
    """The absolute path of the teacher; several with commas.

    Raises:
        BadInput: one is missing or untrained.
    """
    found = find_teachers(arguments.get("teacher", defaults()["teacher"]))
    for teacher in found:
        if is_detector(teacher) and not teacher.endswith(".pt"):
            raise BadInput(f"teacher={teacher} is untrained: train it first, and give its .pt")
    return ",".join(map(chain.absolute, found))


def acting_terms(arguments: dict[str, Any], whole: str) -> list[str]:
    """The terms that act between the teacher and a student.

    Args:
        arguments: of a training.
        whole: `mkd`, or the preset that sets the terms.
    """
    preset = {} if whole == "mkd" else {"preset": whole}
    with silent():
        asked = validate({**arguments, **preset, "record": False}, "ablate")
    own, imgsz = asked.own, asked.theirs.get("imgsz", 640)
    student = host.build(own["model"], asked.data["nc"], asked.data["channels"], asked.data.get("kpt_shape"))
    data, theirs = asked.data, asked.theirs
    spec = host.model_spec(student, imgsz).of_data(
        data["names"], data["channels"], bool(theirs.get("single_cls")), theirs.get("classes")
    )
    named = find_teachers(own["teacher"])
    if len(named) > 1 or not is_detector(named[0]):
        raise BadInput("ablate works with one .pt as teacher=: use compare for other teachers")
    teacher = host.model_spec(host.load_detector("teacher", named[0], True), own["teacher_imgsz"] or imgsz)
    return [t.name for t in Distiller(spec, teacher, {n: own[n] for n in TERMS}).acting]


def parse_seeds(given: Any) -> list[int]:
    """The seeds from `seeds=`: a number n for 0 to n - 1, or a list.

    Raises:
        BadInput: it is neither.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return list(range(given))
    words = split_values(given) if isinstance(given, str | list | tuple) else []
    if not words or not all(w.isdecimal() for w in words) or len(set(words)) < len(words):
        raise BadInput(
            f"seeds={join_values(given)} must be a number of seeds or a list of different ones, "
            "for example seeds=3 or seeds=0,1,5"
        )
    return [int(w) for w in words]


def command_line(verb: str, arguments: dict[str, Any]) -> str:
    """The command line for these arguments."""
    return " ".join(["yolo-mkd", verb, *(f"{k}={join_values(v)}" for k, v in arguments.items())])


def split_values(given: Any) -> list[str]:
    """The parts of a value that may hold several, separated by commas or as a list."""
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    return [str(w).strip() for w in words if str(w).strip()]


def join_values(given: Any) -> str:
    """A value in the form of the command line."""
    return ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
