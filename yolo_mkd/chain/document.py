"""chain.yaml: its fields, and its reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from typing_extensions import NotRequired, TypedDict

from yolo_mkd import documents, host
from yolo_mkd.chain.stages import Stage
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.settings import KD_OPTIONS, BadInput, check_argument, refuse_unknown

SCHEMA = "yolo-mkd/chain/2"
ADVICE = "restore the file, or start a new chain"
# Ultralytics' arguments that the chain sets itself: in chain.yaml they would put a stage's files elsewhere
OF_THE_STAGE = {"model", "mode", "task", "cfg", "project", "name", "exist_ok", "save_dir", "resume", "distill_model"}
WHEN_DONE = {"weights", "sha256", "metrics", "seconds"}  # fields of a finished stage


class TeacherFile(TypedDict):
    """A teacher's checkpoint or boxes, with their SHA-256."""

    file: str
    sha256: str


class Chain(TypedDict):
    """The contents of chain.yaml.

    Attributes:
        schema: `SCHEMA`.
        started: when, in ISO 8601.
        versions: of the packages.
        knowledge: M-KD's arguments that shape distillation, the terms' weights among them.
        teacher_epochs: epochs of the teacher's own training; 0 for a trained teacher.
        seed: of the trainings.
        arguments: Ultralytics' arguments.
        teacher: the teacher's file and its SHA-256; None where the chain trains its teacher itself.
        more_teachers: the same of each further teacher; absent in chains of earlier versions.
        stages: in their order.
    """

    schema: str
    started: str
    versions: dict[str, str]
    knowledge: dict[str, Any]
    teacher_epochs: int
    seed: int
    arguments: dict[str, Any]
    teacher: TeacherFile | None
    more_teachers: NotRequired[list[TeacherFile]]
    stages: list[Stage]


def read_chain(file: Path) -> Chain:
    """The contents of a chain.yaml, every field checked.

    Raises:
        BadInput: it is missing, damaged, of another version, or would write outside its folder.
    """
    named = f"resume={file}"
    chain = read_finished(file, named, ADVICE)
    try:
        check_values(chain)
    except BadInput as error:
        raise BadInput(f"{named} is damaged ({error}): {ADVICE}") from error
    return chain


def read_finished(file: Path, named: str, advice: str) -> Chain:
    """The contents of a chain.yaml that is shown, not continued: it may have arguments of an earlier version.

    Args:
        file: the chain.yaml.
        named: how the message begins.
        advice: how it ends.

    Raises:
        BadInput: it is missing, damaged or of another version.
    """
    contents = documents.read_yaml(file, named, advice)
    if not isinstance(contents, dict) or contents.get("schema") != SCHEMA:
        raise BadInput(f"{named} was not written by this version ({SCHEMA}): start a new chain")
    chain = cast(Chain, documents.validated(TypeAdapter(Chain), contents, named, advice))
    if fault := fault_of_stages(chain["stages"]):
        raise BadInput(f"{named} is damaged ({fault}): {advice}")
    return chain


def check_values(chain: Chain) -> None:
    """Check what a type cannot say.

    Raises:
        BadInput: an argument that a chain does not have or that cannot work.
    """
    refuse_unknown(chain["knowledge"], {*KD_OPTIONS, *TERMS}, "train")
    for name, value in chain["knowledge"].items():
        check_argument(name, value)
    refuse_unknown(chain["arguments"], host.arguments().keys() - OF_THE_STAGE, "train")
    host.check_arguments(chain["arguments"])
    check_argument("teacher_epochs", chain["teacher_epochs"])


def fault_of_stages(stages: list[Stage]) -> str:
    """Why stages do not fit together; empty if they do."""
    names = [stage["name"] for stage in stages]
    if not names or names[-1] != "student" or len(set(names)) < len(names):
        return f"its stages are {', '.join(names) or 'none'}, which do not end in one student"
    for stage in stages:
        missing = WHEN_DONE - stage.keys() if stage["status"] == "done" else set()
        if missing:
            return f"stage {stage['name']} is done without its {min(missing)}"
    return ""
