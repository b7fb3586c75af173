"""Before training: will this help, and what will it cost? All is measured on a few images, and nothing is trained.

The stages are set up as training would set them up, in a folder that is removed. A teacher or an assistant that the
chain has yet to train is stood in for by an untrained model of its shape: that costs the same and knows nothing, so
what its knowledge decides stays open.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from yolo_mkd import host, report
from yolo_mkd.cache.store import estimate
from yolo_mkd.cache.teacher import layout_of
from yolo_mkd.cache.views import shown
from yolo_mkd.chain import assistant
from yolo_mkd.chain.stages import ChainRequest, Stage, validate
from yolo_mkd.chain.start import write_start
from yolo_mkd.distill.balance import GradientRatio
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.matching import Match, shared_classes
from yolo_mkd.distill.monitor import notes
from yolo_mkd.distill.schedule import Schedule
from yolo_mkd.distill.sources import find_teachers, groups_of, is_detector
from yolo_mkd.evidence.plan import cost, sample
from yolo_mkd.evidence.plan.accuracy import QuickEval
from yolo_mkd.evidence.plan.advice import verdict, warnings
from yolo_mkd.evidence.plan.probe import Probe
from yolo_mkd.evidence.plan.schema import HopFigures, PlanFigures, StageFigures, Summary, TermFigures
from yolo_mkd.host.dry import PLAIN, dry_run, silent
from yolo_mkd.host.spec import MERGED_NAMES
from yolo_mkd.settings import KD_OPTIONS, BadInput
from yolo_mkd.trainer import TRAINERS

PROBE_S = 20.0  # for the gradients and steps of all stages
EXAM_S = 12.0  # for the accuracy of all models
TRAIN_IMAGES, VAL_IMAGES, TIMED_VAL_IMAGES = 64, 64, 16
CPU_PIXELS = 4 * 320**2  # a batch that one core takes in about a second
REPLACED = {"data", "batch", "device", "fraction", "cache", "plots", "save_period", "time"}


@dataclass(frozen=True)
class PlanRequest(ChainRequest):
    """A plan that is requested.

    Attributes:
        named: terms that the user names.
    """

    named: list[str]

    @property
    def imgsz(self) -> int:
        """Image size [pixels]."""
        return int(self.theirs.get("imgsz", 640))

    @property
    def single_cls(self) -> bool:
        """Whether all classes of the data are trained as one."""
        return bool(self.theirs.get("single_cls"))

    @property
    def device(self) -> str:
        """The device that measures: the first of those that are asked for."""
        named = self.theirs.get("device")
        first = named[0] if isinstance(named, list | tuple) and named else named
        if first in {None, ""}:
            return "0" if torch.cuda.is_available() else "cpu"
        return str(first).split(",")[0]


@dataclass(frozen=True)
class StageTeacher:
    """Who teaches a stage: its files or its stand-in's, and whether it is the one that will teach."""

    name: str
    files: list[str]
    known: bool


def plan(**arguments: Any) -> PlanFigures:
    """Predict a training: which terms act and how strongly, what it costs, and what to change.

    Args:
        **arguments: those of train; `json` names a file to write the figures to.

    Returns:
        The figures that `yolo-mkd plan` prints. Times are in seconds or hours, memory and disk in bytes.

    Raises:
        BadInput: train would refuse these arguments.
    """
    started, json = time.perf_counter(), arguments.pop("json", None)
    report.check_writable("json", json)
    if arguments.pop("download", False):
        raise BadInput("download=true runs code of the data set, and plan runs none: fetch the images before")
    trust = arguments.pop("trust", False)
    with silent(), host.trusting(trust), tempfile.TemporaryDirectory(prefix="yolo-mkd-plan-") as folder:
        figures = predict(validate_request(arguments), Path(folder))
    figures["warnings"] = warnings(figures)
    figures["answer"] = verdict(figures)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    if json:
        report.write(json, "plan", figures)
    return figures


def validate_request(arguments: dict[str, Any]) -> PlanRequest:
    """Check everything as train does.

    Raises:
        BadInput: train would refuse it.
    """
    if arguments.get("resume"):
        raise BadInput("resume= continues a chain that has begun: give the arguments of a new one")
    request = validate(arguments, "plan")
    return PlanRequest(**vars(request), named=[n for n in TERMS if n in arguments])


def predict(request: PlanRequest, folder: Path) -> PlanFigures:
    """Probe each stage, then examine the models that are trained already."""
    train, val = (sample.images_of(request.data, s, request.theirs.get("fraction", 1.0)) for s in ("train", "val"))
    wanted = request.theirs.get("batch", 16)
    automatic = not isinstance(wanted, int) or wanted < 1
    batch = min(16 if automatic else wanted, len(train))
    stages = probe_stages(request, folder, batch, train, val)
    images = sample.evenly_spaced(val, images_to_score(stages))
    return {
        "data": str(request.data["yaml_file"]),
        "classes": request.data["nc"],
        "train_images": len(train),
        "val_images": len(val),
        "device": "cpu" if request.device == "cpu" else torch.cuda.get_device_name(torch.device("cuda")),
        "device_memory": None if request.device == "cpu" else torch.cuda.mem_get_info()[1],
        "imgsz": request.imgsz,
        "batch": batch,
        "batch_is_automatic": automatic,
        "calibrate": request.own["calibrate"],
        "gate": request.own["gate"],
        "named_terms": request.named,
        "assistant": about_assistant(request),
        "stages": stages,
        "examined_images": len(images),
        "accuracy": score_models(request, QuickEval(request.data, images, folder, request.device, request.single_cls)),
        "total": {
            **{key: sum(s["cost"][key] for s in stages) for key in ("hours", "hours_plain")},
            **{key: sum(s["disk"][key] for s in stages) for key in ("peak", "kept")},
        },
    }


def probe_stages(
    request: PlanRequest, folder: Path, batch: int, train: list[Path], val: list[Path]
) -> list[StageFigures]:
    """Set up each stage on a few images and measure it."""
    small = min(batch, max(2, CPU_PIXELS // request.imgsz**2)) if request.device == "cpu" else batch
    shown = sample.evenly_spaced(train, max(TRAIN_IMAGES, 4 * small))
    shown = shown[: len(shown) // small * small]  # whole batches only: another size would take another time
    few = sample.copy(
        request.data, {"train": shown, "val": sample.evenly_spaced(val, TIMED_VAL_IMAGES)}, folder / "few"
    )
    arguments = {
        **{k: v for k, v in request.theirs.items() if k not in REPLACED},
        **{"data": str(few), "batch": small, "device": request.device, "project": str(folder), "plots": False},
    }
    teachers: dict[str, StageTeacher] = {}
    found = []
    for stage in request.stages:
        name, task = stage["name"], host.task(stage["model"])
        given = [h for h in stage["hears"] if h not in teachers]
        groups = groups_of(given, request.own["teachers"]) if given else []
        number = ("",) if len(groups) == 1 else range(1, len(groups) + 1)
        hears = [StageTeacher(f"teacher{i}", files, True) for i, files in zip(number, groups, strict=False)]
        trained = [teachers[h] for h in stage["hears"] if h in teachers]
        length = {"epochs": request.own["teacher_epochs"]} if name == "teacher" else {}
        probe, trainer = Probe(PROBE_S / len(request.stages)), PLAIN[task]
        hears += trained
        if hears:
            knowledge = {
                **{key: request.own[key] for key in (*KD_OPTIONS, *TERMS)},
                "record": False,
                "unlabelled": None,
            }
            files = [file for h in trained for file in h.files]
            trainer = TRAINERS[task].using(given or files[:1], files if given else files[1:], **knowledge)
        model = host.write_architecture(stage["model"], folder)
        if "start" in stage and given:  # a teacher that is not trained yet has nothing to give
            model, _ = write_start(folder, stage["start"], model, given[0], request.theirs)
        dry_run(trainer, model, {**arguments, **length, "name": name}, probe)
        run = run_of(request, probe, batch, len(train), len(val))
        found.append(stage_figures(stage, run, probe, hears, request.own["teacher_imgsz"] or request.imgsz))
        file = stand_in(stage["model"], request.data, folder / f"{name}.pt", request.single_cls)
        teachers[name] = StageTeacher(name, [file], False)
    return found


def run_of(request: PlanRequest, probe: Probe, batch: int, images: int, val_images: int) -> cost.Run:
    """The whole run of a stage, with Ultralytics' defaults where nothing is asked for."""
    args = probe.args
    schedule = Schedule.of(args.epochs, args.warmup_epochs, request.own["until"], request.own["teacher_every"])
    recorded = shown(request.own["views"], 0, schedule.end, args.epochs - args.close_mosaic)
    return cost.Run(
        epochs=args.epochs,
        batch=batch,
        images=images,
        val_images=val_images,
        nbs=args.nbs,
        schedule=schedule,
        hours=request.theirs.get("time"),
        save_period=request.theirs.get("save_period", -1),
        validates=args.val,
        asked=len(recorded) if request.own["record"] else None,
        joined=1 + (request.own["unlabelled_ratio"] if request.own["unlabelled"] and probe.distillers else 0.0),
    )


def stand_in(model: str, data: dict[str, Any], file: Path, single_cls: bool = False) -> str:
    """Write an untrained model of the shape that a stage will have, and return its file."""
    built = host.build(model, 1 if single_cls else data["nc"], data["channels"], data.get("kpt_shape"))
    built.names = dict(MERGED_NAMES if single_cls else data["names"])
    torch.save({"model": built}, file)
    return str(file)


def stage_figures(stage: Stage, run: cost.Run, probe: Probe, hears: list[StageTeacher], imgsz: int) -> StageFigures:
    """What is known of a stage before it is trained."""
    figures, args = probe.figures, probe.args
    return {
        "name": stage["name"],
        "model": Path(stage["model"]).name,
        "trained": stage["model"].endswith(".pt") or ("start" in stage and hears[0].known),
        "start": stage.get("start", "plain"),
        "taken": stage.get("taken", 0.0),
        "parameters": figures["size"]["parameters"],
        "gflops": figures["size"]["gflops"],
        "epochs": run.epochs,
        "knowledge_epochs": run.schedule.end if probe.distillers else 0,
        "updates": run.updates,
        "mosaic_epochs": max(args.epochs - args.close_mosaic, 0) if args.mosaic else 0,
        "optimizer": figures["optimizer"],
        "hears": [h.name for h in hears],
        "hops": [hop_figures(*each, imgsz) for each in zip(hears, probe.distillers, probe.ratios, strict=False)],
        "cost": {**cost.duration(run, figures), "probe": {k: figures[k] for k in PROBED}},
        "memory": cost.memory(run, figures),
        "disk": cost.disk(run, figures),
        "joined": run.joined,
        "teacher_every": run.schedule.every,
        "record": [cache_figures(d, run) for d in probe.distillers] if run.asked is not None else [],
    }


def cache_figures(distiller: Distiller, run: cost.Run) -> dict[str, Any]:
    """The views that the cache of a teacher holds, and its size [bytes]."""
    layout = layout_of(distiller.match.teacher)
    views = run.asked or 0
    return {"views": views, "bytes": estimate(layout, run.images, views), "bytes_per_view": layout.bytes}


PROBED = ("batch", "timed", "plain", "taught", "reading_s", "load_s", "update_s", "val_s_per_image")


def hop_figures(
    teacher: StageTeacher, distiller: Distiller, ratios: list[dict[str, GradientRatio]], imgsz: int
) -> HopFigures:
    """What one teacher can teach one student, term by term."""
    match = distiller.match
    sizes = [host.size(Path(file), imgsz) for file in teacher.files if is_detector(file)]
    return {
        "teacher": teacher.name,
        "file": " + ".join(Path(file).name for file in teacher.files) if teacher.known else None,
        "known": teacher.known,
        "parameters": int(sum(size["parameters"] for size in sizes)),
        "gflops": sum(size["gflops"] for size in sizes),
        "ratio": match.teacher.parameters / match.student.parameters,
        "terms": [term_figures(t.name, distiller, ratios if teacher.known else []) for t in distiller.terms],
        "layers": {
            r: {"student": asdict(match.student.layers[r]), "teacher": asdict(match.teacher.layers[r])}
            for r in distiller.roles
        },
        "strides": {"student": match.student.strides, "teacher": match.teacher.strides},
        "unknown_classes": unknown_classes(match),
        "notes": notes(distiller),
    }


def unknown_classes(match: Match) -> list[str]:
    """The names of the data's classes that the teacher lacks; none where both have single_cls=True's one class."""
    if match.student.merged and match.teacher.names == MERGED_NAMES:
        return []
    names = match.student.merged or match.student.names
    known = dict(shared_classes(names, match.teacher.names))
    return [name for i, name in names.items() if i not in known]


def term_figures(name: str, distiller: Distiller, ratios: Sequence[dict[str, GradientRatio]]) -> TermFigures:
    """What a term reads, and its gradient's share and direction where its teacher is known."""
    term, balancer = distiller.term(name), distiller.balancer
    found: TermFigures = {
        "term": name,
        "asked": term.asked,
        "acts": not term.why_not,
        "why_not": term.why_not,
        "reads": "" if term.why_not else term.reads,
        "trains": sum(p.numel() for p in term.adapters.parameters()) if term.adapters else 0,
    }
    if term.why_not or not ratios:
        return found
    nominal = balancer.asked[name].nominal if balancer.calibrate else term.asked
    found["nominal_gain"] = nominal
    found["share"] = summary([r[name].strength * nominal for r in ratios])
    found["gain"] = balancer.gains[name]
    found["at_limit"] = name in balancer.limited()
    found["cosine"] = summary([r[name].cosine for r in ratios])
    return found


def summary(values: list[float]) -> Summary:
    """The mean, the standard deviation, and the values themselves."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else 0.0, "values": values}


def about_assistant(request: PlanRequest) -> str:
    """Which assistant was chosen and why; empty where the user chose."""
    if request.own["assistant"] != "auto":
        return ""
    teachers = find_teachers(request.own["teacher"])
    if len(teachers) > 1 or not is_detector(teachers[0]):
        return ""
    paths = [host.find_model("model", request.own["model"]), teachers[0]]
    name, reason = assistant.choose(*paths)
    return f"assistant=auto chose {name or 'none'}: {reason}"


def images_to_score(stages: list[StageFigures]) -> int:
    """How many images there is time to score."""
    each = [s["cost"]["probe"] for s in stages]
    per_image = sum((p["plain"]["student_s"] + p["taught"].get("teacher_s", 0.0)) / p["batch"] for p in each)
    return int(min(VAL_IMAGES, max(8, EXAM_S / per_image)))


def score_models(request: PlanRequest, evaluator: QuickEval) -> dict[str, dict[str, Any]]:
    """The accuracy of every model that is trained already, by its name in the chain."""
    last = request.stages[-1]
    trained = {s["name"]: s["model"] for s in request.stages if s["model"].endswith(".pt") and s["name"] != "teacher"}
    given = find_teachers(request.own["teacher"])
    if not request.own["teacher_epochs"] and len(given) == 1 and is_detector(given[0]):
        trained["teacher"] = last["hears"][0]
    size = {"teacher": request.own["teacher_imgsz"] or request.imgsz}
    return {name: evaluator.score(name, file, size.get(name, request.imgsz)) for name, file in trained.items()}
