"""One HTML page of a run: the answer first, then what it rests on. It needs no network and is drawn from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from pydantic import TypeAdapter

from yolo_mkd import chain as chains
from yolo_mkd import documents, host
from yolo_mkd import report as reports
from yolo_mkd.chain import Chain
from yolo_mkd.chain.document import read_finished
from yolo_mkd.deploy.pareto.rows import report_kind
from yolo_mkd.distill.sources import is_boxes
from yolo_mkd.evidence.compare.schema import Comparison
from yolo_mkd.evidence.page import looks as look
from yolo_mkd.evidence.page.blocks import Page, data_uri
from yolo_mkd.evidence.page.charts import ROLES
from yolo_mkd.evidence.page.comparison import comparison_page, first_difference, planned, short_name
from yolo_mkd.evidence.page.exports import add_plan, export_charts, export_tables, plan_warnings, worst_of
from yolo_mkd.evidence.page.looks import LookRequest, ModelFile
from yolo_mkd.evidence.page.schema import Looks
from yolo_mkd.evidence.page.training import layer_name, training_page
from yolo_mkd.evidence.page.worst import FOLDER as WORST_FOLDER
from yolo_mkd.host import LOGGER, log_page
from yolo_mkd.settings import BadInput, file_path

FILE = "report.html"
WITHOUT_LAYERS = "The teacher of this run is only boxes, so there are no hidden layers to compare with."
WITHOUT_HEAD = (
    "The teacher has no detection head, so it has no detections; the map that stands for one of its layers is the one "
    "that this layer of the student was compared with."
)
ADVICE = "restore it from a copy"


@dataclass(frozen=True)
class Sources:
    """The files of a run that its page is made from.

    Attributes:
        folder: the run's; the page is written to it.
        kind: training, comparison or demo.
        document: the contents of chain.yaml or compare.json.
        chain: the folder of the chain; the run's own, or the one inside a demo.
        request: the models to look at; None where they are unknown.
    """

    folder: Path
    kind: str
    document: dict[str, Any]
    chain: Path
    request: LookRequest | None
    notes: list[str] = field(default_factory=list)


def write_page(
    run: str | Path, plain: str | Path | None = None, plan: str | Path | None = None, trust: bool = False
) -> Path:
    """Write report.html of a run: one file with everything in it, which opens from disk.

    What the models compute for validation images is measured once and stored in the folder `report`; later calls draw
    the page from there, also where the models or the data are gone.

    Args:
        run: the folder of a training, a comparison or a demo.
        plain: a checkpoint of the same student trained without a teacher, to compare the student of a training with.
        plan: the file that yolo-mkd plan wrote with json= before the training, for its warnings; it is copied to the
            run's folder.
        trust: run a teacher that is a program, and load files that hold code beside weights.

    Returns:
        The page's file.

    Raises:
        BadInput: the folder holds no run, or a file of it cannot be read.
    """
    without_teacher = None if plain is None else file_path("plain", plain, "plain/weights/best.pt")
    sources = find_sources(file_path("run", run, "runs/mkd/train"), without_teacher)
    if plan is not None:
        if sources.kind == "comparison":
            raise BadInput("plan= is for the report of a training: a comparison has no plan")
        add_plan(sources.folder, file_path("plan", plan, "plan.json"))
    with host.trusting(trust):
        found, note = find_looks(sources)
    with refusing_misfits(sources.folder):
        if sources.kind == "comparison":
            page = comparison_page(sources.folder, cast(Comparison, sources.document))
        else:
            page = training_page(sources.chain, cast(Chain, sources.document), found)
            page.kind, page.name = sources.kind, sources.folder.name
            page.warnings, page.plan = plan_warnings(sources.folder)
        page.looks, page.looks_note = found, note
        if found:
            place = sources.folder / look.FOLDER
            page.pictures = {file.name: data_uri(file) for file in sorted(place.glob("*.jpg"))}
        page.exports, page.export_charts = export_tables(sources.folder), export_charts(sources.folder)
        page.worst, page.worst_notes = worst_of(sources.folder)
        shown = {image["picture"] for exported in page.worst for image in exported["images"]}
        page.worst_pictures = {name: data_uri(sources.folder / WORST_FOLDER / name) for name in sorted(shown)}
        text = render(page)
    return reports.write_text(sources.folder / FILE, text)


@contextmanager
def refusing_misfits(folder: Path) -> Iterator[None]:
    """Refuse, within, figures of a run that each fit their schema and do not fit together, as a class without its AP.

    Raises:
        BadInput: drawing them fails.
    """
    from jinja2 import TemplateError

    try:
        yield
    except BadInput:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, TemplateError) as e:
        found = f"{type(e).__name__}: {documents.reason(e)}"
        raise BadInput(f"run={folder}: figures of its files do not fit together ({found}): {ADVICE}") from e


def find_sources(folder: Path, plain: Path | None) -> Sources:
    """The kind of a run and the files of it.

    Raises:
        BadInput: the folder holds no run.
    """
    if (folder / "compare.json").is_file():
        if plain is not None:
            raise BadInput("plain= is for the report of a training: a comparison has plain trials of its own")
        comparison = read_comparison(folder)
        with refusing_misfits(folder):
            request = comparison_request(folder, comparison)
        return Sources(folder, "comparison", dict(comparison), folder, request)
    kind = "demo" if (folder / "demo.json").is_file() else "training"
    place = folder / "chain" if kind == "demo" else folder
    file = place / "chain.yaml"
    if not file.is_file():
        raise BadInput(
            f"run={folder} holds no finished run: give the folder of a training (chain.yaml), a comparison "
            "(compare.json) or a demo (demo.json)"
        )
    chain = read_finished(file, f"run={file}", ADVICE)
    beside = folder / "plain" / "weights" / "best.pt"
    named = plain if plain is not None else beside if kind == "demo" else None
    if named is not None and not named.is_file():
        raise BadInput(f"plain={named}: no such file: give the best.pt of a training without a teacher")
    with refusing_misfits(folder):
        request = chain_request(place, chain, named)
    return Sources(folder, kind, dict(chain), place, request)


def read_comparison(folder: Path, argument: str = "run") -> Comparison:
    """The contents of a comparison's compare.json.

    Args:
        folder: the comparison's.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: it is damaged or of another kind.
    """
    file = folder / "compare.json"
    named, advice = f"{argument}={file}", f"write it again with yolo-mkd compare resume={folder}"
    found = documents.read_json(file, named, advice)
    if report_kind(found) != "compare":
        raise BadInput(f"{named} is not a report of yolo-mkd compare")
    return cast(Comparison, documents.validated(TypeAdapter(Comparison), found, named, advice))


def chain_request(folder: Path, chain: Chain, plain: Path | None) -> LookRequest | None:
    """The models of a finished chain, those in its folder taken from there; None while it is unfinished."""
    if any(stage["status"] != "done" for stage in chain["stages"]):
        return None
    arguments, known = chain["arguments"], chain["knowledge"]
    imgsz = arguments.get("imgsz", 640)
    large = known.get("teacher_imgsz") or imgsz
    teachers = [t["file"] for t in (chain["teacher"], *chain.get("more_teachers", [])) if t]
    models = teacher_model(teachers, large)
    start = Path(chain["stages"][-1]["model"])
    for stage in chain["stages"]:
        own = folder / stage["name"] / "weights" / "best.pt"
        path = own if own.is_file() else Path(stage["weights"])
        label = "distilled student" if stage["name"] == "student" else stage["name"]
        models.append(ModelFile(stage["name"], label, path, imgsz))
    if plain is not None:
        models.insert(-1, ModelFile("plain", "plain student", plain, imgsz))
    elif start.suffix == ".pt" and start.is_file():
        models.insert(-1, ModelFile("start", "student before training", start, imgsz))
    return LookRequest(models, arguments["data"], arguments.get("device"), bool(arguments.get("single_cls")))


def teacher_model(files: list[str], imgsz: int) -> list[ModelFile]:
    """The first teacher that is more than boxes, as a model that a page shows; none if all are boxes."""
    return [ModelFile("teacher", "teacher", Path(file), imgsz) for file in files if not is_boxes(file)][:1]


def comparison_request(folder: Path, comparison: Comparison) -> LookRequest | None:
    """The teacher and one seed's plain and distilled student of the first data set; None where they are unknown."""
    found = first_difference(comparison["rows"], ["plain"])
    if found is None or not comparison["teacher"]:
        return None
    method, first = found[0], comparison["rows"][0]
    trials = [c for c in planned(folder) if (c["data"], c["student"]) == (first["data"], first["student"])]
    for seed in comparison["seeds"]:
        own = {c["method"]: c for c in trials if c["seed"] == seed and c["method"] in {"plain", method}}
        files = {name: best_of(folder / trial["name"]) for name, trial in own.items()}
        if len(files) == 2 and all(files.values()):
            arguments = own["plain"]["arguments"]
            imgsz = arguments.get("imgsz", 640)
            models = [
                *teacher_model([comparison["teacher"]["file"]], imgsz),
                ModelFile("plain", f"plain student, seed {seed}", cast(Path, files["plain"]), imgsz),
                ModelFile("student", f"{short_name(method)}, seed {seed}", cast(Path, files[method]), imgsz),
            ]
            return LookRequest(models, arguments["data"], arguments.get("device"), bool(arguments.get("single_cls")))
    return None


def best_of(trial: Path) -> Path | None:
    """The student's checkpoint in a trial's folder; None without."""
    found = sorted(trial.glob("**/weights/best.pt"), key=lambda p: ("student" not in p.parts, len(p.parts)))
    return found[0] if found else None


def find_looks(sources: Sources) -> tuple[Looks | None, str]:
    """What the models compute, stored or measured now, and a note on what it is of or why there is none."""
    before = look.stored(sources.folder)
    request = sources.request
    if request is None:
        return before, "" if before else "The models of this run are not all there, so no images are shown."
    note = layers_note(request)
    if before and look.is_of(before, request):
        return before, note
    missing = [m.path for m in request.models if not m.present]
    if missing:
        return before, "" if before else f"{missing[0]} is not a file on this disk, so no images are shown."
    try:
        return look.measure(sources.folder, request), note
    except BadInput as e:
        LOGGER.warning(f"M-KD: report: no images are shown: {e}")
        return before, "" if before else f"No images are shown: {e}"


def layers_note(request: LookRequest) -> str:
    """A note on a teacher that is not a detector; empty for one that is."""
    teachers = [m for m in request.models if m.role == "teacher"]
    if not teachers:
        return WITHOUT_LAYERS
    return WITHOUT_HEAD if teachers[0].is_network else ""


def write_page_after(run: Path, stage: Path | None = None) -> None:
    """Write the page at the end of a command that has done its work; a failure is a warning, not the command's.

    Args:
        run: as in `write_page`.
        stage: the folder of a training whose loggers get the page, too.
    """
    try:
        file = write_page(run)
    except Exception as e:  # the run is finished and stored: nothing may turn it into a failure
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        LOGGER.warning(
            f"M-KD: the page could not be written ({reason}): try yolo-mkd report run={chains.shortest(run)}"
        )
        return
    LOGGER.info(f"M-KD: report: {chains.shortest(file)}")
    if stage is not None and (stored := log_page(file, stage)):
        LOGGER.info(f"M-KD: the report is stored by {', '.join(stored)}, too")


FILTERS = {
    "layer_name": layer_name,
    "found_by": lambda objects, role: sum(role in o["found_by"] for o in objects),
    "minus": lambda ours, theirs: [
        [a - b for a, b in zip(*rows, strict=True)] for rows in zip(ours, theirs, strict=True)
    ],
    "off_diagonal": lambda rows: fmean(
        [abs(v) for i, row in enumerate(rows) for j, v in enumerate(row) if i != j] or [0.0]
    ),
}


def render(page: Page) -> str:
    """The page as HTML, with styles, script and pictures in it."""
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    parts = {name: (here / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    version = reports.versions().get("yolo-mkd", "")
    return environment.get_template("page.html").render(page=page, version=version, roles=ROLES, **parts)
