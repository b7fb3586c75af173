"""One trial of a comparison: its fields, and their check where they are read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from yolo_mkd import documents, host
from yolo_mkd.settings import BadInput, defaults

DAMAGED = "restore the file, or remove the folder of its trial"
NOT_OF_A_TRIAL = {"save_dir", "resume", "trust", "download", "mode", "cfg"}  # a file cannot give itself a permission


@dataclass(frozen=True)
class Trial:
    """One training, as stored in `compare.yaml` and in its own `cell.yaml`.

    Attributes:
        name: its folder below that of the comparison: data/student/method-seed.
        data: the data set's label.
        student: the student's label.
        method: the method's name.
        seed: of initial weights, order and augmentation.
        chain: whether yolo-mkd trains it, else Ultralytics alone.
        arguments: of that train.
        val: arguments of the validation, the same for all trials.
        longer: for a run of equal cost, the names of the plain trial and of the trial whose cost it matches.
        pseudo: for pseudo-labels: teacher, unlabelled, and the ratio in the batches that it is compared with.
    """

    name: documents.InnerPath
    data: str
    student: str
    method: str
    seed: int
    chain: bool
    arguments: dict[str, Any]
    val: dict[str, Any]
    longer: tuple[str, str] | None = None
    pseudo: dict[str, Any] | None = None


def check_task(task: Any, named: str) -> None:
    """Check the fields of a trial that is read from a file, and that it writes into its own folder alone.

    Args:
        task: the contents of a `cell.yaml`, or an entry of `compare.yaml`.
        named: how the message begins.

    Raises:
        BadInput: a field is missing or wrong, or a file would give itself permissions.
    """
    documents.validated(TypeAdapter(Trial), task, named, DAMAGED)
    arguments, depth = task["arguments"], len(Path(task["name"]).parts)
    project = Path(str(arguments.get("project")))
    if arguments.get("name") != "run" or project.parts[-depth:] != Path(task["name"]).parts:
        raise BadInput(f"{named} (project= and name= of trial {task['name']} are not its own folder): {DAMAGED}")
    allowed = {*defaults(), *host.arguments()} - NOT_OF_A_TRIAL
    if wrong := sorted(arguments.keys() - allowed):
        raise BadInput(f"{named} ({wrong[0]}= is not an argument of trial {task['name']}): {DAMAGED}")
