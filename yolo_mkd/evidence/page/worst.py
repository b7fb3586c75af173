"""The images on which exported files deviate most from their checkpoints, with the boxes of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter

from yolo_mkd import documents, host, report
from yolo_mkd.deploy.check.matching import ImageMatch, Pairing, Rows, detect_in_files, lowest_conf, pair_detections
from yolo_mkd.deploy.exported_model import file_identity, read_exported_model
from yolo_mkd.deploy.images import split_images
from yolo_mkd.evidence.page import pictures
from yolo_mkd.evidence.page.schema import ExportBox, ExportImage, ExportLook, ExportLooks
from yolo_mkd.settings import BadInput

FOLDER, FILE = "report/exports", "exports.json"  # of the boxes and pictures, in the run's folder
SHOWN = 3  # images a file
MOST_FILES = 6  # with the pictures of looks.json the page stays below 10 MB
MOVED = 0.9  # our choice: a pair that overlaps less differs visibly


def worst_images(folder: Path, reports: Sequence[dict[str, Any]]) -> tuple[list[ExportLook], list[str]]:
    """The worst images of each exported file, the file that deviates most first, and notes on files without pictures.

    What a file and its checkpoint detect is measured once and stored in the folder `report/exports`, so that the page
    can be made again when they are gone.

    Args:
        folder: the run's.
        reports: of export and check, with the detections that were compared.
    """
    place = folder / FOLDER
    before = {look["sha256"]: look for look in stored(place)}
    looks: list[ExportLook] = []
    notes, fresh = [], False
    for found in sorted({r["sha256"]: r for r in reports if compared(r)}.values(), key=unmatched_share, reverse=True):
        detections = found["parity"]["detections"]
        chosen = [image for image in detections["worst_images"] if differs_visibly(image)][:SHOWN]
        look = before.get(found["sha256"])
        if not chosen:
            notes.append(
                f"{found['file']}: no box is missing, added or visibly moved in {detections['images']} images."
            )
        elif len(looks) == MOST_FILES:
            notes.append(f"{found['file']}: no images; they are shown of {MOST_FILES} files.")
        elif look is not None:
            looks.append(look)
        else:
            try:
                looks.append(measure(folder, found, chosen))
                fresh = True
            except (BadInput, ImportError) as error:  # of a runtime that is not installed
                notes.append(f"{found['file']}: no images: {host.one_line(error)}.")
    if fresh:
        report.write(place / FILE, "export-images", {"files": looks})
    return looks, notes


def compared(found: Mapping[str, Any]) -> bool:
    """Whether a report has detections of a file and of its checkpoint."""
    return bool((found.get("parity") or {}).get("detections")) and bool((found.get("source") or {}).get("sha256"))


def unmatched_share(found: Mapping[str, Any]) -> float:
    """Boxes that only a file or only its checkpoint detects, as a share of the boxes of both."""
    detections = found["parity"]["detections"]
    sides = ("checkpoint", "file")
    total = sum(detections[f"{side}_detections"] for side in sides)
    return float(sum(detections[f"{side}_unmatched"] for side in sides) / max(total, 1))


def differs_visibly(image: ImageMatch) -> bool:
    """Whether one sees that a file's boxes in an image are not those of its checkpoint."""
    return bool(image["unmatched"]) or (image["min_iou"] or 1) < MOVED


def stored(place: Path) -> list[ExportLook]:
    """The images that were written to a run's folder before; none without."""
    file = place / FILE
    if not file.is_file():
        return []
    advice = "remove it, and yolo-mkd report writes it again"
    found = documents.read_json(file, str(file), advice)
    return cast(ExportLooks, documents.validated(TypeAdapter(ExportLooks), found, str(file), advice))["files"]


def measure(folder: Path, found: Mapping[str, Any], chosen: Sequence[ImageMatch]) -> ExportLook:
    """Detect with a file and its checkpoint on the images of its report that were chosen, and write copies of them.

    Raises:
        BadInput: the file, its checkpoint or an image is not there, or cannot be read.
        ImportError: the file's runtime is not installed.
    """
    file, source = locate(folder, found), locate(folder, found["source"])
    trained = host.load_detector("against", str(source))
    model = read_exported_model(file)
    named = by_name(split_images("data", str(trained.args.get("data")), "val"))
    missing = [image["image"] for image in chosen if image["image"] not in named]
    if missing:
        raise BadInput(f"{missing[0]} is not in the val split of {trained.args.get('data')}")
    images = [named[image["image"]] for image in chosen]
    host.LOGGER.info(f"M-KD: report: {file.name} and {source.name} on {len(images)} images")
    detections = found["parity"]["detections"]
    conf, lowest = detections["conf"], lowest_conf(detections["asked_conf"])
    sides = [detect_in_files(path, images, model, lowest) for path in (source, file)]
    shown = []
    for k, (image, figures) in enumerate(zip(images, chosen, strict=True)):
        name = f"{found['sha256'][:12]}-{k}.jpg"
        size = pictures.save_copy(image, folder / FOLDER / name)
        pairing = pair_detections(sides[0][k], sides[1][k], conf, detections["score_tolerance"])
        shown.append(image_of(figures, name, size, host.image_shape(image), pairing, trained.names))
    return {
        "file": found["file"],
        "sha256": found["sha256"],
        "checkpoint": found["source"]["file"],
        "checkpoint_sha256": found["source"]["sha256"],
        "conf": conf,
        "compared": detections["images"],
        "images": shown,
    }


def locate(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The file or folder of this name and SHA-256 in a run's folder.

    Raises:
        BadInput: it is not there.
    """
    for path in sorted(folder.rglob("*")):
        if path.name == identity["file"] and file_identity(path)["sha256"] == identity["sha256"]:
            return path
    raise BadInput(f"{identity['file']} is not in the run's folder, or has changed since its report")


def by_name(images: Sequence[Path]) -> dict[str, Path]:
    """Images by file name, those left out whose name is not unique."""
    names = [image.name for image in images]
    return {image.name: image for image in images if names.count(image.name) == 1}


def image_of(
    figures: ImageMatch,
    picture: str,
    size: tuple[int, int],
    shape: tuple[int, int],
    found: Pairing,
    names: Mapping[int, str],
) -> ExportImage:
    """One image with the boxes of both sides.

    Args:
        figures: of it, in the file's report.
        picture: its copy.
        size: width and height of the copy [pixels].
        shape: height and width of the image [pixels].
        found: what checkpoint and file detect in it.
        names: of the classes.
    """
    moved = {pair for pair in found.pairs if found.overlap[pair] < MOVED}
    paired = [{pair[side]: pair in moved for pair in found.pairs} for side in (0, 1)]
    return {
        "image": figures["image"],
        "picture": picture,
        "width": size[0],
        "height": size[1],
        "min_iou": figures["min_iou"],
        "max_score_difference": figures["max_score_difference"],
        "checkpoint_boxes": boxes_of(found.ours, paired[0], found.alone, shape, names),
        "file_boxes": boxes_of(found.theirs, paired[1], found.extra, shape, names),
    }


def boxes_of(
    rows: Rows, paired: Mapping[int, bool], alone: Sequence[int], shape: tuple[int, int], names: Mapping[int, str]
) -> list[ExportBox]:
    """One side's boxes that count, with the state of each: same, moved or alone."""
    height, width = shape
    states = {k: "moved" if moved else "same" for k, moved in paired.items()} | dict.fromkeys(alone, "alone")
    found: list[ExportBox] = []
    for k, state in sorted(states.items()):
        x1, y1, x2, y2, score, label = rows[k].tolist()
        box = [round(v, 4) for v in (x1 / width, y1 / height, x2 / width, y2 / height)]
        found.append({"box": box, "name": str(names[int(label)]), "conf": round(score, 3), "state": state})
    return found
