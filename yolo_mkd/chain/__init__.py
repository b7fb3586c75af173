"""The chain: teacher -> assistant -> student, each stage an ordinary Ultralytics run, all of it in chain.yaml."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from yolo_mkd import host, report
from yolo_mkd.chain.document import SCHEMA, Chain, read_chain
from yolo_mkd.chain.progress import EpochLines
from yolo_mkd.chain.stages import Stage, absolute, validate
from yolo_mkd.chain.start import write_start
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.distill.sources import checksum, present
from yolo_mkd.host import LOGGER
from yolo_mkd.locking import exclusive
from yolo_mkd.settings import KD_OPTIONS, BadInput, defaults, refuse_unknown
from yolo_mkd.trainer import TRAINERS

if TYPE_CHECKING:
    from ultralytics import YOLO

Callbacks = dict[str, list[Callable[[Any], None]]]
ON_RESUME = {"resume", "json", "device", "workers", "batch"}  # arguments that may differ when a chain is resumed
FIGURES = {  # of the summary's table; a detector among teachers of another task has only the first two
    "map50_95": "mAP50-95",
    "map50": "mAP50",
    "mask_map50_95": "mask mAP50-95",
    "mask_map50": "mask mAP50",
    "pose_map50_95": "pose mAP50-95",
    "pose_map50": "pose mAP50",
}


class MKD:
    """A student, its teacher and its assistants.

    Example:
        >>> from yolo_mkd import MKD
        >>> student = MKD("yolo26n.pt", teacher="yolo26m.pt").train(data="coco8.yaml", epochs=3)  # doctest: +SKIP

    Attributes:
        folder: the chain's folder, once trained.
        chain: the contents of chain.yaml, once trained.
        results: the metrics of the student, as Ultralytics' own `train` returns them, once trained.
        callbacks: functions of the trainer by Ultralytics' event, called in every stage.
    """

    def __init__(self, model: str | Path | None = None, **arguments: Any):
        """Name the models; any argument of `cfg/default.yaml` may be given here or to `train`.

        Args:
            model: the student's .pt or .yaml.
            **arguments: such as `teacher`, `assistant`, `attention`.
        """
        refuse_unknown(arguments, defaults(), "train")
        self.arguments = {**({} if model is None else {"model": str(model)}), **arguments}
        self.folder: Path | None = None
        self.chain: Chain | None = None
        self.results: Any = None
        self.callbacks: Callbacks = {}

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        """Call a function with the trainer at an event of every stage, as `add_callback` of an Ultralytics model does.

        Args:
            event: Ultralytics' name of it, such as `on_fit_epoch_end`.
            function: takes the trainer; the stage's name is `trainer.args.name`.
        """
        self.callbacks.setdefault(event, []).append(function)

    def train(self, **arguments: Any) -> YOLO:
        """Train the chain.

        Args:
            **arguments: M-KD's (`cfg/default.yaml`) and Ultralytics' train arguments; `json` names a copy of the
                summary.

        Returns:
            The trained student, an ultralytics YOLO.

        Raises:
            BadInput: an argument, file or data set cannot work; nothing has been written then.
        """
        from ultralytics import YOLO

        arguments = {**self.arguments, **arguments}
        self.folder, self.chain, self.results = host.permitting(train_chain)(arguments, self.callbacks)
        with host.trusting(arguments.get("trust", False)):
            student = YOLO(self.chain["stages"][-1]["weights"])
        student.metrics = self.results  # as after Ultralytics' own training
        return student


@host.permitting
def train(**arguments: Any) -> tuple[Path, Chain]:
    """Distil a student from a teacher, through an assistant if there is one.

    Args:
        **arguments: M-KD's and Ultralytics' train arguments.

    Returns:
        The chain's folder and the contents of its `chain.yaml`.
    """
    return train_chain(arguments, {})[:2]


def train_chain(arguments: dict[str, Any], callbacks: Callbacks) -> tuple[Path, Chain, Any]:
    """Train a new chain, or the rest of one.

    Args:
        arguments: as `train` takes them.
        callbacks: functions of the trainer by Ultralytics' event, called in every stage.

    Returns:
        The chain's folder, the contents of its `chain.yaml`, and the metrics of the student's training; None for a
        chain whose student had been trained already.
    """
    arguments, metrics = dict(arguments), None
    json = arguments.pop("json", None)
    report.check_writable("json", json)
    folder, chain = resume(arguments) if arguments.get("resume") else create(arguments)
    with exclusive(folder):
        if arguments.get("resume"):
            folder, chain = resume(arguments)  # as it is now that no other process writes it
        try:
            for stage in chain["stages"]:
                if stage["status"] != "done":
                    metrics = run_stage(folder, chain, stage, callbacks)
        except KeyboardInterrupt:
            LOGGER.warning(f"M-KD: interrupted; continue with yolo-mkd train resume={shortest(folder)}")
            raise
    LOGGER.info(summary(folder, chain))
    for path in filter(None, (folder / "chain.json", json)):
        report.write(path, "chain", dict(chain))
    return folder, chain, metrics


def create(arguments: dict[str, Any]) -> tuple[Path, Chain]:
    """Validate everything, then make the folder of a new chain."""
    request = validate(arguments, "train")
    own, theirs, folder, stages = request.own, request.theirs, request.folder, request.stages
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        stage["model"] = absolute(host.write_architecture(stage["model"], folder))
    theirs["data"] = absolute(request.data["yaml_file"])
    first = stages[0]["hears"]
    chain: Chain = {
        "schema": SCHEMA,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": report.versions(),
        "knowledge": {name: own[name] for name in (*KD_OPTIONS, *TERMS)},
        "teacher_epochs": own["teacher_epochs"],
        "seed": theirs.get("seed", 0),
        "arguments": theirs,
        "teacher": {"file": first[0], "sha256": checksum(first[0])} if first else None,
        "more_teachers": [{"file": file, "sha256": checksum(file)} for file in first[1:]],
        "stages": stages,
    }
    save(folder, chain)
    return folder, chain


def resume(arguments: dict[str, Any]) -> tuple[Path, Chain]:
    """Open an interrupted chain.

    Raises:
        BadInput: there is none, it is damaged or of another version, its teacher has changed, or an argument cannot
            change.
    """
    if extra := sorted(set(arguments) - ON_RESUME):
        raise BadInput(
            f"{extra[0]}= cannot change when a chain is resumed: with resume= give only {', '.join(sorted(ON_RESUME))}"
        )
    folder = host.newest_chain() if arguments["resume"] is True else Path(str(arguments["resume"]))
    file = None if folder is None else folder if folder.name == "chain.yaml" else folder / "chain.yaml"
    if file is None or not file.is_file():
        raise BadInput(f"resume={arguments['resume']}: no chain.yaml there: give the folder of an interrupted chain")
    chain = read_chain(file)
    for teacher in filter(None, [chain["teacher"], *chain.get("more_teachers", [])]):
        if not present(teacher["file"]) or checksum(teacher["file"]) != teacher["sha256"]:
            raise BadInput(f"resume={file}: its teacher {teacher['file']} is missing or has changed: restore it")
    host.check_values({k: v for k, v in arguments.items() if k in {"device", "batch"}})
    host.check_data(chain["arguments"].get("data"), fetch=False)
    chain["arguments"].update({k: v for k, v in arguments.items() if k not in {"resume", "json"}})
    folder = file.parent.resolve()
    for stage in chain["stages"]:
        relocate(folder, stage)
    return folder, chain


def relocate(folder: Path, stage: Stage) -> None:
    """Let a stage's files be those of this folder, also where it was moved or copied, and verify them.

    Raises:
        BadInput: a finished stage's checkpoint is missing or has changed.
    """
    own = folder / Path(stage["model"]).name
    if own.is_file():
        stage["model"] = str(own)
    if stage["status"] != "done":
        return
    best = folder / stage["name"] / "weights" / "best.pt"
    if not best.is_file() or report.sha256(best) != stage["sha256"]:
        raise BadInput(f"{best} is missing or has changed since stage {stage['name']} ended: restore the same file")
    stage["weights"] = str(best)


def run_stage(folder: Path, chain: Chain, stage: Stage, callbacks: Callbacks) -> Any:
    """Train one stage, from its start or from its last checkpoint, and write its results into chain.yaml.

    Returns:
        The metrics that Ultralytics' train returns; None where nothing was left to train.
    """
    from ultralytics import YOLO

    done = {s["name"]: s["weights"] for s in chain["stages"] if s["status"] == "done"}
    assistants = [done[name] for name in stage["hears"] if name in done and name != "teacher"]
    teachers = [done.get(name, name) for name in stage["hears"]][: len(stage["hears"]) - len(assistants)]
    trainer = TRAINERS[host.task(stage["model"])]
    options = {k: v for k, v in chain["knowledge"].items() if k != "preset"}  # whose values are resolved already
    own = {"trainer": trainer.using(teachers, assistants, **options)} if teachers else {}
    arguments = {**chain["arguments"], "project": str(folder), "name": stage["name"], "exist_ok": True, **own}
    if stage["name"] == "teacher":
        arguments["epochs"] = chain["teacher_epochs"]
    if stage["name"] != "student":
        arguments.pop("quantize", None)  # the soft targets of a quantisation-aware student are those of FP32 teachers
    distilled = f", distilled from {' and '.join(stage['hears'])}" if teachers else ""
    place_in_chain, later = progress_of(chain, stage)
    LOGGER.info(f"\nM-KD: {place_in_chain}{distilled}")
    begun, since, metrics = stage["status"] == "running", time.perf_counter(), None
    stage["status"] = "running"
    save(folder, chain)
    place = folder / stage["name"]
    keeper = host.CheckpointKeeper(place)
    if not (begun and keeper.finished()):  # else it was cut off after its end, before chain.yaml said so
        resumes = begun and keeper.restore()
        if begun and not resumes:
            LOGGER.warning(f"M-KD: {place} holds no checkpoint that can be resumed: the stage begins anew")
            shutil.rmtree(place, ignore_errors=True)
        if resumes:
            arguments = {k: v for k, v in arguments.items() if k in {"device", "workers", "batch", "trainer"}}
            arguments |= {"resume": True, "save_dir": str(place)}  # the folder may have been moved
        yolo = YOLO(place / "weights" / "last.pt" if resumes else start_of(folder, chain, stage, teachers))
        keeper.install(yolo)
        EpochLines(place_in_chain, later).install(yolo)
        for event, function in ((e, f) for e, functions in callbacks.items() for f in functions):
            yolo.add_callback(event, function)
        with host.without_epoch_bars():
            metrics = yolo.train(**arguments)
    best = place / "weights" / "best.pt"
    stage["status"], stage["weights"], stage["sha256"] = "done", str(best), report.sha256(best)
    stage["metrics"] = host.metrics(best)
    stage["seconds"] = round(stage.get("seconds", 0) + time.perf_counter() - since, 1)
    save(folder, chain)
    return metrics


def progress_of(chain: Chain, stage: Stage) -> tuple[str, list[int]]:
    """A stage's name with its place in the chain, and the epochs of each stage after it."""
    names = [s["name"] for s in chain["stages"]]
    number = names.index(stage["name"]) + 1
    epochs = int(chain["arguments"].get("epochs", host.arguments()["epochs"]))
    return f"{stage['name']}, stage {number} of {len(names)}", [epochs] * (len(names) - number)


def start_of(folder: Path, chain: Chain, stage: Stage, teachers: list[str]) -> str:
    """The file that a stage starts from: its model's, or one that is written here with its teacher's weights."""
    if "start" not in stage:
        return stage["model"]
    file, stage["taken"] = write_start(folder, stage["start"], stage["model"], teachers[0], chain["arguments"])
    LOGGER.info(f"M-KD: start={stage['start']}: the teacher gives {stage['taken']:.1%} of the student's weights")
    return file


def save(folder: Path, chain: Chain) -> None:
    """Write chain.yaml, whole or not at all."""
    report.write_text(folder / "chain.yaml", yaml.safe_dump(dict(chain), sort_keys=False, allow_unicode=True))


def summary(folder: Path, chain: Chain) -> str:
    """The results as a table for people, and the commands that come next."""
    shown = {k: title for k, title in FIGURES.items() if k in chain["stages"][-1]["metrics"]}
    rows = [
        [
            s["name"],
            f"{s['parameters']:,}",
            *(f"{s['metrics'].get(figure, math.nan):.3f}" for figure in shown),
            f"{s['seconds'] / 60:.1f}",
            shortest(s["weights"]),
        ]
        for s in chain["stages"]
    ]
    table = report.table(rows, ["stage", "parameters", *shown.values(), "minutes", "weights"])
    best = shortest(chain["stages"][-1]["weights"])
    lines = ["", *(f"  {line}" for line in table.splitlines())]
    given = chain["arguments"].get("quantize")
    following = f"Next: yolo-mkd export model={best} format=onnx" + (f" quantize={given}" if given else "")
    lines += [f"M-KD: chain written to {shortest(folder)}", following]
    return "\n".join(lines)


def shortest(path: str | Path) -> str:
    """A path as the user would type it from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
