"""The chain: teacher -> assistant -> student, each stage an ordinary Ultralytics run, all of it in chain.yaml."""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from yolo_mkd import host, report
from yolo_mkd.cache.unlabelled import check_ratio, find
from yolo_mkd.cache.views import refuse
from yolo_mkd.chain import assistant as midpoint
from yolo_mkd.distill.distiller import TERMS, Lesson, check_asked
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import KNOWLEDGE, BadInput, defaults, refuse_unknown, resolve
from yolo_mkd.trainer import TRAINERS

if TYPE_CHECKING:
    from ultralytics import YOLO

SCHEMA = "yolo-mkd/chain/2"
ON_RESUME = {"resume", "json", "device", "workers", "batch"}  # what may differ when a chain goes on
FIGURES = {  # of the summary's table; a detector that a student of another task hears has only the first two
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
        chain: what `chain.yaml` says, once trained.
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
        self.chain: dict[str, Any] = {}

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

        self.folder, self.chain = train(**{**self.arguments, **arguments})
        return YOLO(self.chain["stages"][-1]["weights"])


def train(**arguments: Any) -> tuple[Path, dict[str, Any]]:
    """Distil a student from a teacher, through an assistant if there is one.

    Args:
        **arguments: M-KD's and Ultralytics' train arguments.

    Returns:
        The chain's folder and the contents of its `chain.yaml`.
    """
    json = arguments.pop("json", None)
    folder, chain = go_on(arguments) if arguments.get("resume") else start(arguments)
    try:
        for stage in chain["stages"]:
            if stage["status"] != "done":
                run_stage(folder, chain, stage)
    except KeyboardInterrupt:
        LOGGER.warning(f"M-KD: interrupted; go on with yolo-mkd train resume={shortest(folder)}")
        raise
    LOGGER.info(summary(folder, chain))
    for path in filter(None, (folder / "chain.json", json)):
        report.write(path, "chain", chain)
    return folder, chain


@dataclass(frozen=True)
class ChainRequest:
    """A chain that is asked for, with everything checked and nothing written.

    Attributes:
        own: M-KD's arguments, settled.
        theirs: Ultralytics' arguments, as given, without those that name the folder.
        data: the data set, as `host.check_data` gives it.
        folder: where the chain will be.
        stages: as `plan` gives them.
    """

    own: dict[str, Any]
    theirs: dict[str, Any]
    data: dict[str, Any]
    folder: Path
    stages: list[dict[str, Any]]


def checked(arguments: dict[str, Any], verb: str) -> ChainRequest:
    """Check all the arguments of a new chain.

    Raises:
        BadInput: they cannot work.
    """
    refuse_unknown(arguments, {*defaults(), *host.arguments()}, verb)
    own = resolve({k: v for k, v in arguments.items() if k in defaults()})
    theirs = {k: v for k, v in arguments.items() if k not in defaults()}
    refuse_conflicts(theirs)
    if own["record"]:
        refuse(SimpleNamespace(rect=theirs.get("rect", False), multi_scale=theirs.get("multi_scale", 0)))
    data = host.check_data(theirs.get("data"))
    if own["unlabelled"] is not None:
        own["unlabelled"] = absolute(str(own["unlabelled"]))
        own["unlabelled_ratio"] = check_ratio(own["unlabelled_ratio"])
        find(own["unlabelled"])
    place = {k: theirs.pop(k, None) for k in ("project", "name", "exist_ok")}
    host.check_arguments(theirs)
    refuse_task(theirs.pop("task", None), own["model"])
    stages = plan(own, data, theirs.get("imgsz", 640))
    folder = host.run_folder(place["project"], place["name"], bool(place["exist_ok"]))
    if (folder / "chain.yaml").exists():
        raise BadInput(f"{folder} holds a chain already: go on with resume={folder}, or choose another name=")
    return ChainRequest(own, theirs, data, folder, stages)


def start(arguments: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Check everything, then make the folder of a new chain."""
    asked = checked(arguments, "train")
    own, theirs, folder, stages = asked.own, asked.theirs, asked.folder, asked.stages
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        stage["model"] = absolute(host.write_architecture(stage["model"], folder))
    theirs["data"] = absolute(asked.data["yaml_file"])
    chain = {
        "schema": SCHEMA,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": report.versions(),
        "knowledge": {name: own[name] for name in (*KNOWLEDGE, *TERMS)},
        "teacher_epochs": own["teacher_epochs"],
        "seed": theirs.get("seed", 0),
        "arguments": theirs,
        "teacher": teacher_record(stages),
        "stages": stages,
    }
    save(folder, chain)
    return folder, chain


def absolute(file: str) -> str:
    """A file's full path, so that a chain goes on from any folder; a name that only Ultralytics resolves stays."""
    return str(Path(file).resolve()) if Path(file).exists() else file


def teacher_record(stages: list[dict[str, Any]]) -> dict[str, str] | None:
    """The teacher's file and its SHA-256; none where the chain trains its teacher itself."""
    first = stages[0]["hears"]
    return {"file": first[0], "sha256": sha256(first[0])} if first else None


def sha256(path: str | Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def refuse_conflicts(theirs: dict[str, Any]) -> None:
    """Refuse Ultralytics arguments that a chain cannot take.

    Raises:
        BadInput: no data, Ultralytics' own distillation, or compilation.
    """
    if not theirs.get("data"):
        raise BadInput("data= is missing: give a data set's YAML file, for example data=coco8.yaml")
    if theirs.get("distill_model"):
        raise BadInput("distill_model= is Ultralytics' own distillation: leave it out, the teacher here is teacher=")
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


def plan(own: dict[str, Any], data: dict[str, Any], imgsz: int) -> list[dict[str, Any]]:
    """The stages of a new chain, every model found, loaded once and matched with those that teach it.

    Args:
        own: M-KD's arguments.
        data: the data set, as `host.check_data` gives it.
        imgsz: image size [pixels].

    Returns:
        One dict a stage: name, model, hears (stage names or files), status.
    """
    student = host.find_model("model", own["model"])
    teacher = host.find_model("teacher", own["teacher"])
    epochs = own["teacher_epochs"]
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise BadInput(f"teacher_epochs={epochs} is no number of epochs: give 0 or more")
    if not teacher.endswith(".pt") and not epochs:
        raise BadInput(
            f"teacher={own['teacher']} is untrained: give a trained .pt, or train it first (teacher_epochs=100)"
        )
    if Path(teacher).resolve() == Path(student).resolve():
        raise BadInput(f"teacher={own['teacher']} is the student itself: give a larger, trained teacher")
    assistants = find_assistants(own["assistant"], student, teacher)

    stages: list[dict[str, Any]] = []
    if epochs:
        stages.append({"name": "teacher", "model": teacher, "hears": []})
    hears = ["teacher" if epochs else str(Path(teacher).resolve())]
    for i, model in enumerate(assistants, 1):
        stages.append({"name": f"assistant{i if len(assistants) > 1 else ''}", "model": model, "hears": list(hears)})
        hears.append(stages[-1]["name"])
    stages.append({"name": "student", "model": student, "hears": list(hears)})

    asked = check_asked({name: own[name] for name in TERMS})
    known = {}
    if not epochs:
        model = host.load_detector("teacher", teacher, transformer=True)
        host.check_imgsz(
            own["teacher_imgsz"] or imgsz, model, "teacher", "teacher_imgsz" if own["teacher_imgsz"] else "imgsz"
        )
        known[hears[0]] = host.model_spec(model, own["teacher_imgsz"] or imgsz)
    for stage in stages:
        argument = "model" if stage["name"] == "student" else stage["name"].rstrip("0123456789")
        host.check_labels(data, host.task(stage["model"], argument))
        model = host.build(stage["model"], data["nc"], data["channels"], data.get("kpt_shape"), argument)
        host.check_imgsz(imgsz, model, argument)
        spec = replace(host.model_spec(model, imgsz), names=data["names"], channels=data["channels"])
        known[stage["name"]] = spec  # as it will be once fitted to the data
        for name in stage["hears"]:
            lesson = Lesson(spec, known[name], asked)
            lesson.require_active_term(name)
            if own["record"]:
                lesson.require_cacheable()
        stage.update(parameters=spec.parameters, status="waiting")
    sizes = {name: spec.parameters for name, spec in known.items()}
    show_plan(hears, sizes)
    return stages


def find_assistants(named: Any, student: str, teacher: str) -> list[str]:
    """The assistants' files from `assistant=`: none, chosen, or named with commas."""
    if named is None or named == []:
        return []
    if named == "auto":
        name, reason = midpoint.choose(student, teacher)
        LOGGER.info(f"M-KD: assistant=auto chose {name or 'none'}: {reason}")
        return [host.find_model("assistant", name)] if name else []
    names = named.split(",") if isinstance(named, str) else [named] if isinstance(named, Path) else list(named)
    found = [host.find_model("assistant", str(n).strip()) for n in names]
    for path in found:
        if Path(path).resolve() in {Path(student).resolve(), Path(teacher).resolve()}:
            raise BadInput(
                f"assistant={path} is the student or the teacher itself: give a model of a size between them"
            )
    return found


def show_plan(hears: list[str], sizes: dict[str, int]) -> None:
    """Say what teaches what and how far apart they are."""
    links = [*zip(["teacher", *hears[1:]], hears, strict=True), ("student", "student")]
    chained = [(name, sizes[key]) for name, key in links]
    LOGGER.info("M-KD: " + " -> ".join(f"{name} {count / 1e6:.2f} M" for name, count in chained) + " parameters")
    for (larger, big), (smaller, small) in itertools.pairwise(chained):
        if big / small > midpoint.FAR:
            ratio = f"the {larger} has {big / small:.1f} x the parameters of the {smaller}"
            LOGGER.warning(f"M-KD: {ratio}: {midpoint.BRIDGE}")


def go_on(arguments: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Open an interrupted chain."""
    if extra := sorted(set(arguments) - ON_RESUME):
        raise BadInput(
            f"{extra[0]}= cannot change while a chain goes on: with resume= give only {', '.join(sorted(ON_RESUME))}"
        )
    folder = host.newest_chain() if arguments["resume"] is True else Path(str(arguments["resume"]))
    file = None if folder is None else folder if folder.name == "chain.yaml" else folder / "chain.yaml"
    if file is None or not file.is_file():
        raise BadInput(f"resume={arguments['resume']}: no chain.yaml there: give the folder of an interrupted chain")
    try:
        chain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise BadInput(f"resume={file} is damaged: {host.one_line(e)}") from e
    if not isinstance(chain, dict) or chain.get("schema") != SCHEMA:
        raise BadInput(f"resume={file} was not written by this version ({SCHEMA}): start a new chain")
    teacher = chain["teacher"]
    if teacher and (not Path(teacher["file"]).is_file() or sha256(teacher["file"]) != teacher["sha256"]):
        raise BadInput(f"resume={file}: its teacher {teacher['file']} is gone or has changed: put the same file back")
    chain["arguments"].update({k: v for k, v in arguments.items() if k not in {"resume", "json"}})
    return file.parent.resolve(), chain


def run_stage(folder: Path, chain: dict[str, Any], stage: dict[str, Any]) -> None:
    """Train one stage, from its start or from its last checkpoint, and write down what came out."""
    from ultralytics import YOLO

    done = {s["name"]: s["weights"] for s in chain["stages"] if s["status"] == "done"}
    hears = [done.get(h, h) for h in stage["hears"]]
    trainer = TRAINERS[host.task(stage["model"])]
    own = {"trainer": trainer.using(hears[0], hears[1:], **chain["knowledge"])} if hears else {}
    arguments = {**chain["arguments"], "project": str(folder), "name": stage["name"], "exist_ok": True, **own}
    if stage["name"] == "teacher":
        arguments["epochs"] = chain["teacher_epochs"]
    weights = folder / stage["name"] / "weights"
    LOGGER.info(f"\nM-KD: stage {stage['name']}" + (f", taught by {' and '.join(stage['hears'])}" if hears else ""))
    begun, since = stage["status"] == "running", time.perf_counter()
    stage["status"] = "running"
    save(folder, chain)
    if begun and host.resumable(weights / "last.pt"):
        kept = {k: v for k, v in arguments.items() if k in {"device", "workers", "batch", "trainer"}}
        YOLO(weights / "last.pt").train(resume=True, **kept)
    elif not begun or not (weights / "best.pt").exists():  # else it was cut off after its last epoch
        if begun:
            shutil.rmtree(folder / stage["name"], ignore_errors=True)  # cut off before its first checkpoint
        YOLO(stage["model"]).train(**arguments)
    best = weights / "best.pt"
    stage.update(
        status="done",
        weights=str(best),
        sha256=sha256(best),
        metrics=host.metrics(best),
        seconds=round(stage.get("seconds", 0) + time.perf_counter() - since, 1),
    )
    save(folder, chain)


def save(folder: Path, chain: dict[str, Any]) -> None:
    """Write `chain.yaml`, whole or not at all."""
    partial = folder / "chain.yaml.part"
    partial.write_text(yaml.safe_dump(chain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    partial.replace(folder / "chain.yaml")


def summary(folder: Path, chain: dict[str, Any]) -> str:
    """What came out, as a table for people, and the commands that come next."""
    shown = {k: title for k, title in FIGURES.items() if k in chain["stages"][-1]["metrics"]}
    heads = "".join(f"{title:>{len(title) + 2}}" for title in shown.values())
    lines = ["", f"  {'stage':<12}{'parameters':>12}{heads}{'minutes':>9}  weights"]
    for s in chain["stages"]:
        scores = "".join(f"{s['metrics'].get(k, math.nan):>{len(title) + 2}.3f}" for k, title in shown.items())
        minutes = s["seconds"] / 60
        lines.append(f"  {s['name']:<12}{s['parameters']:>12,}{scores}{minutes:>9.1f}  {shortest(s['weights'])}")
    best = shortest(chain["stages"][-1]["weights"])
    lines += [f"M-KD: chain written to {shortest(folder)}", f"Next: yolo-mkd export model={best} format=onnx"]
    return "\n".join(lines)


def shortest(path: str | Path) -> str:
    """A path as the user would type it from here."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
