"""Run the models of a run on validation images: accuracy by class, detections, attention maps, relation matrices."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import cv2
import torch
from pydantic import TypeAdapter
from torch import Tensor

from yolo_mkd import documents, host, report
from yolo_mkd.distill.matching import shared_classes
from yolo_mkd.distill.network_files import is_network
from yolo_mkd.distill.sources import checksum, present
from yolo_mkd.evidence.page import objects, pictures
from yolo_mkd.evidence.page.hidden import Read, open_layers, open_network
from yolo_mkd.evidence.page.schema import Box, ImageLook, Looks, ModelLook, Tally
from yolo_mkd.evidence.plan import sample
from yolo_mkd.host.scoring import letterbox
from yolo_mkd.host.spec import MERGED_NAMES
from yolo_mkd.knowledge.attention import attention_map, map_loss
from yolo_mkd.knowledge.relation import grid_for, relation_matrix
from yolo_mkd.settings import BadInput

FOLDER, FILE = "report", "looks.json"  # of the figures and pictures, in the run's folder
ADVICE = "remove its folder, and yolo-mkd report measures it again where the models are still there"
EXAMINED = 120  # validation images on which models are validated: a page takes seconds to a minute or two
COMPARED = 16  # of them on which hidden layers are compared


@dataclass(frozen=True)
class ModelFile:
    """A model that a page shows.

    Attributes:
        role: as in `ModelLook`.
        label: its name for people.
        path: its .pt, or the name of a network.
        imgsz: image size that it takes [pixels].
    """

    role: str
    label: str
    path: Path
    imgsz: int

    @property
    def is_network(self) -> bool:
        """Whether it is a network without a detection head."""
        return is_network(str(self.path))

    @property
    def present(self) -> bool:
        """Whether its file is on this disk."""
        return present(str(self.path))


@dataclass(frozen=True)
class LookRequest:
    """What to look at.

    Attributes:
        models: from the teacher to the student.
        data: the data set's YAML file.
        device: as Ultralytics takes it; None lets it choose.
        single_cls: all classes count as one.
    """

    models: list[ModelFile]
    data: str
    device: Any = None
    single_cls: bool = False

    @property
    def reference(self) -> str:
        """The role that the student is compared with: itself without a teacher, else the teacher, else itself."""
        roles = [m.role for m in self.models]
        return next(role for role in ("plain", "start", "teacher", "student") if role in roles)


def stored(folder: Path) -> Looks | None:
    """The looks that were written to a run's folder before; None without.

    Raises:
        BadInput: they are damaged.
    """
    file = folder / FOLDER / FILE
    if not file.is_file():
        return None
    contents = documents.read_json(file, str(file), ADVICE)
    return cast(Looks, documents.validated(TypeAdapter(Looks), contents, str(file), ADVICE))


def is_of(looks: Looks, request: LookRequest) -> bool:
    """Whether stored looks are those of these models, by their SHA-256; a model whose file is gone counts as equal."""
    before = {m["role"]: m["sha256"] for m in looks["models"]}
    now = {m.role: checksum(str(m.path)) for m in request.models if m.present}
    if "plain" in before:  # named in an earlier call
        now.pop("start", None)
    return set(now) <= set(before) and all(before[role] == digest for role, digest in now.items())


def measure(folder: Path, request: LookRequest) -> Looks:
    """Look at the models and write looks.json with its pictures.

    Args:
        folder: the run's.
        request: what to look at.

    Raises:
        BadInput: the data set or a model is missing or cannot be read.
    """
    data = host.check_data(request.data, fetch=False)
    every = sample.images_of(data, "val")
    images = sample.evenly_spaced(every, EXAMINED)
    names = dict(MERGED_NAMES) if request.single_cls else data["names"]
    task = host.task(str(request.models[-1].path))
    merged = MERGED_NAMES[0] if request.single_cls else ""
    labelled = [objects.labelled_objects(image, data["names"], task, merged) for image in images]
    models, found = [], {}
    for model in request.models:
        host.LOGGER.info(f"M-KD: report: {model.label} on {len(images)} validation images")
        look, boxes = validate(model, data, images, names, request)
        models.append(look)
        if boxes is not None:
            found[model.role] = boxes
    reference = request.reference if request.reference in found else "teacher" if "teacher" in found else "student"
    totals = compare_objects(labelled, found, reference)
    for one in models:
        if one["role"] in found:
            one["false_detections"] = sum(not d["hit"] for boxes in found[one["role"]] for d in boxes)
    chosen = objects.choose_images([image.name for image in images], labelled)
    place = folder / FOLDER
    for old in place.glob("*.jpg"):  # of other models
        old.unlink()
    shown = [image_look(i, why, images[i], labelled[i], found, place) for i, why in chosen]
    first = [images[i] for i, _ in chosen]
    compared = first + sample.evenly_spaced([image for image in images if image not in first], COMPARED - len(first))
    layers = compare_layers(request.models, models, compared, shown, place)
    figures = {
        "data": request.data,
        "imgsz": request.models[-1].imgsz,
        "examined": len(images),
        "compared": len(compared),
        "val_images": len(every),
        "conf": objects.CONF,
        "iou": objects.IOU,
        "reference": reference,
        "layers": layers,
        "models": models,
        **totals,
        "images": shown,
    }
    file = report.write(place / FILE, "looks", figures)
    return cast(Looks, json.loads(file.read_text(encoding="utf-8")))


def validate(
    model: ModelFile, data: Mapping[str, Any], images: list[Path], names: Mapping[int, str], request: LookRequest
) -> tuple[ModelLook, list[list[Box]] | None]:
    """The accuracy of a model and its detections in each image; None where it has no class of the data."""
    from ultralytics import YOLO

    if model.is_network:
        parameters, sha256 = open_network(str(model.path)).parameters, checksum(str(model.path))
        named = {"role": model.role, "label": model.label, "file": model.path.name}
        return cast(ModelLook, {**named, "sha256": sha256, "parameters": parameters}), None
    detector = host.load_detector(model.role, str(model.path), transformer=True)
    look: ModelLook = {
        "role": model.role,
        "label": model.label,
        "file": model.path.name,
        "sha256": report.sha256(model.path),
        "parameters": sum(p.numel() for p in detector.parameters()),
    }
    theirs = dict(shared_classes(names, detector.names))
    if not theirs:
        return look, None
    back = {t: str(names[ours]) for ours, t in theirs.items()}
    quiet = {"imgsz": model.imgsz, "device": request.device, "verbose": False}
    with tempfile.TemporaryDirectory(prefix="yolo-mkd-report-") as folder, host.quiet():
        # a single_cls model has its own name for the one class
        place, classes = Path(folder), theirs if not request.single_cls else dict.fromkeys(data["names"], 0)
        file = sample.copy(data, {"val": images}, place, classes, detector.names)
        to = {"project": folder, "name": "val", "exist_ok": True}
        box = YOLO(model.path).val(data=str(file), rect=False, batch=8, workers=0, plots=False, **quiet, **to).box
        results = YOLO(model.path).predict([str(i) for i in images], conf=objects.CONF, stream=True, **quiet)
        detections = [boxes_of(result, back) for result in results]
    look["map50_95"], look["map50"] = round(float(box.map), 5), round(float(box.map50), 5)
    pairs = zip(list(box.ap_class_index), list(box.ap), strict=True)  # empty lists without labels
    look["classes"] = {back[c]: round(ap, 5) for c, ap in pairs if c in back}
    return look, detections


def boxes_of(result: Any, names: Mapping[int, str]) -> list[Box]:
    """The detections of those classes that the data has, from an Ultralytics result."""
    given = result.obb if result.obb is not None else result.boxes
    rows = zip(given.xyxy.tolist(), given.conf.tolist(), given.cls.tolist(), strict=True)
    height, width = result.orig_shape
    found: list[Box] = []
    for (x1, y1, x2, y2), conf, label in rows:
        if int(label) in names:
            box = [round(v, 4) for v in (x1 / width, y1 / height, x2 / width, y2 / height)]
            found.append({"box": box, "name": names[int(label)], "conf": round(conf, 3), "hit": False})
    return found


def compare_objects(
    labelled: Sequence[list[Box]], found: Mapping[str, Sequence[list[Box]]], reference: str
) -> dict[str, Tally | dict[str, Tally]]:
    """Match every model's detections with the objects, mark what was won and lost, and count it."""
    hits = {
        role: [objects.match(own, boxes) for own, boxes in zip(labelled, per_image, strict=True)]
        for role, per_image in found.items()
    }
    for i, own in enumerate(labelled):
        objects.mark_fates(own, hits[reference][i], hits["student"][i])
        for k, one in enumerate(own):
            one["found_by"] = [role for role in found if k in hits[role][i]]
    every = [o for own in labelled for o in own]
    by = {
        r: [k in hits[r][i] for i, own in enumerate(labelled) for k in range(len(own))] for r in (reference, "student")
    }

    def count(name: str | None) -> Tally:
        kept = [i for i, o in enumerate(every) if name in {None, o["name"]}]
        chosen = [every[i] for i in kept]
        return objects.tally(chosen, [by[reference][i] for i in kept], [by["student"][i] for i in kept])

    return {"tally": count(None), "tally_by_class": {name: count(name) for name in sorted({o["name"] for o in every})}}


def image_look(
    index: int, why: str, image: Path, labelled: list[Box], found: Mapping[str, Sequence[list[Box]]], place: Path
) -> ImageLook:
    """An image that the page shows, its copy written; the attention maps are added later."""
    picture = f"{index:03}.jpg"
    width, height = pictures.save_copy(image, place / picture)
    return {
        "file": image.name,
        "picture": picture,
        "reason": why,
        "width": width,
        "height": height,
        "won": sum(o["fate"] == "won" for o in labelled),
        "lost": sum(o["fate"] == "lost" for o in labelled),
        "objects": labelled,
        "detections": {role: boxes[index] for role, boxes in found.items()},
        "maps": {},
        "correlation": {},
    }


def compare_layers(
    files: Sequence[ModelFile],
    looks: Sequence[ModelLook],
    images: Sequence[Path],
    shown: Sequence[ImageLook],
    place: Path,
) -> list[str]:
    """The layers that all models have; their attention maps are drawn, and compared as relation matrices are.

    Args:
        files: the models; the first, the teacher, is compared with. Without it nothing is.
        looks: their figures, to which `attention` and `relation` are added.
        images: the compared ones, those of `shown` first.
        shown: to which `maps` and `correlation` are added.
        place: the folder of the pictures.
    """
    if files[0].role != "teacher":
        return []
    last = files[-1]
    student = host.model_spec(host.load_detector(last.role, str(last.path), transformer=True), last.imgsz)
    opened = [open_layers(m.role, str(m.path), m.imgsz, student) for m in files]
    specs = [model.spec for model in opened]
    layers = [role for role in specs[0].layers if all(role in spec.layers for spec in specs)]
    energies: list[dict[str, list[Tensor]]] = []
    for model, own, look in zip(opened, files, looks, strict=True):
        with model.reading(layers) as read:
            maps, relation = hidden_layers(read, images, own.imgsz)
        energies.append(maps)
        look["relation"] = [[round(v, 4) for v in row] for row in relation.tolist()]
        values = {layer: map(correlation, maps[layer], energies[0][layer]) for layer in layers}
        look["attention"] = {layer: round(fmean(found), 4) for layer, found in values.items()}
    for layer in layers:
        for i, image in enumerate(shown):
            image["maps"][layer], image["correlation"][layer] = {}, {}
            for own, maps in zip(files, energies, strict=True):
                name = f"{Path(image['picture']).stem}-{layer}-{own.role}.jpg"
                pictures.save_overlay(place / image["picture"], maps[layer][i].numpy(), place / name)
                image["maps"][layer][own.role] = name
                found = correlation(maps[layer][i], energies[0][layer][i])
                image["correlation"][layer][own.role] = round(found, 4)
    return layers


def correlation(ours: Tensor, theirs: Tensor) -> float:
    """The correlation of two models' attention maps of one image, H W and H' W'."""
    return 1 - float(map_loss(ours[None], theirs[None]))


def hidden_layers(read: Read, images: Sequence[Path], imgsz: int) -> tuple[dict[str, list[Tensor]], Tensor]:
    """The attention maps of each layer, one an image, H W, and the mean relation matrix, L L, without the letterbox."""
    maps: dict[str, list[Tensor]] = {}
    relations = []
    with torch.inference_mode():
        for image in images:
            picture = cv2.imread(str(image))
            if picture is None:
                raise BadInput(f"{image} cannot be read as an image: remove it from the data set")
            square = letterbox(picture, (imgsz, imgsz))[..., ::-1].copy()
            batch = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
            features = {layer: inside(f, picture.shape) for layer, f in read(batch).items()}
            grid = grid_for([(f.shape[2], f.shape[3]) for f in features.values()])
            relations.append(relation_matrix(list(features.values()), grid)[0])
            for layer, feature in features.items():
                maps.setdefault(layer, []).append(attention_map(feature)[0])
    return maps, torch.stack(relations).mean(0)


def inside(features: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of a square letterbox's features, B C H W, that is the picture, whose height and width are given."""
    rows, columns = features.shape[2:]
    height, width = (side / max(shape[:2]) for side in shape[:2])
    high, wide = max(2, round(height * rows)), max(2, round(width * columns))
    top, left = (rows - high) // 2, (columns - wide) // 2
    return features[:, :, top : top + high, left : left + wide]
