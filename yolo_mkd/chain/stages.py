"""The stages of a chain: every argument validated, every model found and matched, before anything is written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Required, TypedDict

from yolo_mkd import host, report
from yolo_mkd.cache.unlabelled import find_images, training_images
from yolo_mkd.cache.views import require_fixed_size
from yolo_mkd.chain import assistant as midpoint
from yolo_mkd.chain.start import fill, possible_slice, refuse_start
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.sources import (
    Opening,
    find_teachers,
    groups_of,
    is_detector,
    is_network,
    mappings_of,
    refuse_options,
    refuse_own_teacher,
)
from yolo_mkd.documents import Number
from yolo_mkd.host import LOGGER
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.settings import BadInput, defaults, refuse_unknown, resolve, split_commas
from yolo_mkd.trainer import NATIVE_TOO, ONE_TEACHER


class Stage(TypedDict, total=False):
    """One training of a chain, as chain.yaml holds it.

    Attributes:
        name: `teacher`, `assistant` (numbered where there are several) or `student`.
        model: its file.
        hears: its teachers, stage names or files; empty for plain training.
        parameters: how many the model has.
        status: `waiting`, `running` or `done`.
        weights: its best checkpoint, once done.
        sha256: of that file.
        metrics: its accuracy on val.
        seconds: of training.
        start: where its weights are taken from its teacher, how; absent for its own.
        taken: the share of its parameters and statistics that its teacher gives.
    """

    name: Required[Annotated[str, Field(pattern=r"^(teacher|assistant\d*|student)$")]]
    model: Required[str]
    hears: Required[list[str]]
    parameters: Required[Annotated[int, Field(ge=0)]]
    status: Required[Literal["waiting", "running", "done"]]
    weights: str
    sha256: str
    metrics: dict[str, Number]
    seconds: Number
    start: Literal["slice", "fitted", "teacher"]
    taken: Number


@dataclass(frozen=True)
class ChainRequest:
    """A chain that is asked for, with everything validated and nothing written.

    Attributes:
        own: M-KD's arguments, resolved.
        theirs: Ultralytics' arguments, as given, without those that name the folder.
        data: the data set, as `host.check_data` gives it.
        folder: where the chain will be.
        stages: as `build_stages` gives them.
    """

    own: dict[str, Any]
    theirs: dict[str, Any]
    data: dict[str, Any]
    folder: Path
    stages: list[Stage]


def validate(arguments: dict[str, Any], command: str) -> ChainRequest:
    """Validate all the arguments of a new chain.

    Args:
        arguments: M-KD's and Ultralytics'.
        command: the command that takes them, for messages.

    Raises:
        BadInput: they cannot work.
    """
    arguments = host.with_cfg_file(arguments)
    refuse_unknown(arguments, {*defaults(), *host.arguments()}, command)
    own = resolve({k: v for k, v in arguments.items() if k in defaults()})
    theirs = {k: v for k, v in arguments.items() if k not in defaults()}
    refuse_conflicts(theirs)
    if own["record"]:
        require_fixed_size(SimpleNamespace(rect=theirs.get("rect", False), multi_scale=theirs.get("multi_scale", 0)))
    data = host.check_data(theirs.get("data"))
    if own["unlabelled"] is not None:
        own["unlabelled"] = absolute(str(own["unlabelled"]))
        find_images(own["unlabelled"])
    host.check_arguments(theirs)
    place = {k: theirs.pop(k, None) for k in ("project", "name", "exist_ok")}
    if theirs.get("freeze") is not None:
        theirs["freeze"] = host.frozen_layers(theirs["freeze"])
    if not data.get(split := theirs.get("split") or "val"):
        raise BadInput(f"split={split}, but data={theirs['data']} has no images of that name: leave split= out")
    refuse_task(theirs.pop("task", None), own["model"])
    stages = build_stages(own, data, theirs)
    for task in sorted({host.task(stage["model"]) for stage in stages}):
        host.check_usable(data, task, bool(theirs.get("single_cls")))
    folder = host.run_folder(place["project"], place["name"], bool(place["exist_ok"]))
    report.check_writable("project", folder / "chain.yaml")
    if (folder / "chain.yaml").exists():
        raise BadInput(f"{folder} holds a chain already: continue it with resume={folder}, or choose another name=")
    return ChainRequest(own, theirs, data, folder, stages)


def refuse_conflicts(theirs: dict[str, Any]) -> None:
    """Refuse Ultralytics arguments that a chain cannot take.

    Raises:
        BadInput: Ultralytics' own distillation, or one folder for all stages.
    """
    if theirs.get("distill_model"):
        raise BadInput(NATIVE_TOO)
    if theirs.get("save_dir"):
        raise BadInput("save_dir= would put all stages in one folder: use project= and name=")


def refuse_task(named: Any, model: Any) -> None:
    """Refuse a task that is not the student's own.

    Raises:
        BadInput: the two differ.
    """
    if named is None:
        return
    own = host.task(host.find_model("model", model))
    if named != own:
        raise BadInput(f"task={named}, but model={model} is of the task {own}: leave task= out, the model decides")


def build_stages(own: dict[str, Any], data: dict[str, Any], theirs: dict[str, Any]) -> list[Stage]:
    """The stages of a new chain, every model found, loaded once and matched with its teachers.

    Args:
        own: M-KD's arguments.
        data: the data set, as `host.check_data` gives it.
        theirs: Ultralytics' arguments; those that are absent have its defaults.

    Raises:
        BadInput: a model is missing, untrained where it has to teach, or no term applies between two models.
    """
    student = host.find_model("model", own["model"])
    teachers = trained_teachers(own, student)
    refuse_start(own["start"], student, teachers)
    assistants = find_assistants(own["assistant"], student, teachers)
    stages = name_stages(student, teachers, assistants, own["teacher_epochs"])
    asked = {name: own[name] for name in TERMS}
    specs: dict[str, ModelSpec] = {}
    imgsz, single_cls = theirs.get("imgsz", 640), bool(theirs.get("single_cls"))
    count = 1 if single_cls else data["nc"]
    named = [] if own["teacher_epochs"] else stages[-1]["hears"][: len(teachers)]
    refuse_options(named, own, host.task(student))
    mappings = mappings_of(named, own["teacher_classes"])
    images = []
    if not all(map(is_detector, named)):
        images = [*training_images(data), *(find_images(own["unlabelled"]) if own["unlabelled"] else [])]
    size, argument = own["teacher_imgsz"] or imgsz, "teacher_imgsz" if own["teacher_imgsz"] else "imgsz"
    for file in filter(is_detector, named):
        model = host.load_detector("teacher", file, transformer=True)
        host.check_imgsz(size, model, "teacher", argument)
        specs[file] = host.model_spec(model, size)
    for stage in stages:
        argument = "model" if stage["name"] == "student" else stage["name"].rstrip("0123456789")
        host.check_labels(data, host.task(stage["model"], argument))
        model = host.build(stage["model"], count, data["channels"], data.get("kpt_shape"), argument)
        host.check_imgsz(imgsz, model, argument)
        host.check_freeze(theirs.get("freeze"), model, argument)
        spec = host.model_spec(model, imgsz).of_data(data["names"], data["channels"], single_cls, theirs.get("classes"))
        specs[stage["name"]] = spec
        opening = Opening(spec, data["names"], images, size, size != imgsz, own, asked, mappings)
        given = [name for name in stage["hears"] if name in named]
        groups = groups_of(given, own["teachers"]) if given else []
        for group in [*groups, *([name] for name in stage["hears"] if name not in named)]:
            distiller = Distiller(spec, opening.spec_of(group, specs), asked)
            distiller.require_active_term(", ".join(group))
            if own["record"]:
                distiller.require_cacheable()
        stage["parameters"] = spec.parameters
        if stage["name"] == "student" and own["start"] != "plain":
            teacher = shape_of(stages, named, count, data)
            stage["start"], stage["taken"] = own["start"], round(fill(own["start"], model, teacher, spec.names)[0], 4)
        elif stage["name"] == "student" and (share := possible_slice(student, named, model, spec.names)):
            LOGGER.info(
                f"M-KD: the student starts from random weights; start=slice takes {share:.0%} of them from its teacher"
            )
    log_sizes(stages, {name: spec.parameters for name, spec in specs.items()})
    return stages


def shape_of(stages: list[Stage], named: list[str], count: int, data: dict[str, Any]) -> Any:
    """The teacher of a chain, or an untrained model of its shape and classes where the chain trains it first."""
    if named:
        return host.load_detector("teacher", named[0], transformer=True)
    model = host.build(stages[0]["model"], count, data["channels"], data.get("kpt_shape"), "teacher")
    model.names = dict(data["names"])
    return model


def trained_teachers(own: dict[str, Any], student: str) -> list[str]:
    """The teachers' files.

    Raises:
        BadInput: one is untrained and is not to be trained, is the student itself, or cannot be trained.
    """
    teachers = find_teachers(own["teacher"])
    if own["teacher_epochs"] and (len(teachers) > 1 or not is_detector(teachers[0])):
        raise BadInput(
            "teacher_epochs= trains one model: give one .yaml or .pt as teacher=, or leave teacher_epochs= out"
        )
    for teacher in filter(is_detector, teachers):
        if not teacher.endswith(".pt") and not own["teacher_epochs"]:
            raise BadInput(
                f"teacher={teacher} is untrained: give a trained .pt, or train it first (teacher_epochs=100)"
            )
    refuse_own_teacher(teachers, student)
    return teachers


def name_stages(student: str, teachers: list[str], assistants: list[str], teacher_epochs: int) -> list[Stage]:
    """The stages in their order, each with its teachers: all models before it."""
    stages: list[Stage] = []

    def append(name: str, model: str, hears: list[str]) -> None:
        stages.append({"name": name, "model": model, "hears": hears, "parameters": 0, "status": "waiting"})

    if teacher_epochs:
        append("teacher", teachers[0], [])
    before = ["teacher"] if teacher_epochs else [t if is_network(t) else str(Path(t).resolve()) for t in teachers]
    for i, model in enumerate(assistants, 1):
        append(f"assistant{i if len(assistants) > 1 else ''}", model, list(before))
        before.append(stages[-1]["name"])
    append("student", student, list(before))
    return stages


def find_assistants(named: Any, student: str, teachers: list[str]) -> list[str]:
    """The assistants' files from `assistant=`: none, chosen, or named with commas."""
    if named is None or named == []:
        return []
    if len(teachers) > 1 or not is_detector(teachers[0]):
        if named == "auto":
            return []
        if len(teachers) > 1:
            raise BadInput(ONE_TEACHER)
    teacher = teachers[0]
    if named == "auto":
        name, reason = midpoint.choose(student, teacher)
        LOGGER.info(f"M-KD: assistant=auto chose {name or 'none'}: {reason}")
        return [host.find_model("assistant", name)] if name else []
    found = [host.find_model("assistant", str(n).strip()) for n in split_commas(named)]
    for path in found:
        if Path(path).resolve() in {Path(student).resolve(), Path(teacher).resolve()}:
            raise BadInput(
                f"assistant={path} is the student or the teacher itself: give a model of a size between them"
            )
    return found


def log_sizes(stages: list[Stage], parameters: dict[str, int]) -> None:
    """Log the chain with its sizes, and warn where two neighbours are far apart; boxes have no size."""
    teachers = [name for name in stages[-1]["hears"] if name in parameters]
    names = [name if name in {s["name"] for s in stages} else "teacher" for name in teachers]
    links = [*zip(names, teachers, strict=True), ("student", "student")]
    chained = [(name, parameters[key]) for name, key in links]
    LOGGER.info("M-KD: " + " -> ".join(f"{name} {count / 1e6:.2f} M" for name, count in chained) + " parameters")
    for (larger, big), (smaller, small) in itertools.pairwise(chained):
        if big / small > midpoint.FAR:
            ratio = f"the {larger} has {big / small:.1f} x the parameters of the {smaller}"
            LOGGER.warning(f"M-KD: {ratio}: {midpoint.BRIDGE}")


def absolute(file: str) -> str:
    """A file's full path, so that a chain can be resumed from any folder; a name that Ultralytics resolves stays."""
    return str(Path(file).resolve()) if Path(file).exists() else file
