"""The fields of looks.json and exports.json: what models and exported files compute for validation images."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import Required, TypedDict

from yolo_mkd.documents import InnerPath, Number

Corners = Annotated[list[Number], Field(min_length=4, max_length=4)]


class ModelLook(TypedDict, total=False):
    """One model.

    Attributes:
        role: teacher, assistant (numbered where there are several), plain (the student trained without a teacher),
            start (the student before training) or student.
        label: its name for people.
        file: its file name.
        sha256: of its file.
        parameters: how many it has.
        map50_95: on the examined images; absent if it has no class of the data.
        map50: the same at IoU 0.5.
        classes: AP50-95 by class name, of the classes that the images have.
        false_detections: of the examined images, those that find no object; absent in older files.
        attention: by layer, the mean correlation of its attention maps with the teacher's.
        relation: its relation matrix, rows and columns in the order of `Looks.layers`, mean over images.
    """

    role: Required[str]
    label: Required[str]
    file: Required[str]
    sha256: Required[str]
    parameters: Required[Annotated[int, Field(ge=0)]]
    map50_95: Number
    map50: Number
    classes: dict[str, Number]
    false_detections: Annotated[int, Field(ge=0)]
    attention: dict[str, Number]
    relation: list[list[Number]]


class Box(TypedDict, total=False):
    """A labelled object or a detection; corners as shares of the image's width and height.

    Attributes:
        box: x1, y1, x2, y2.
        name: of its class.
        conf: of a detection.
        hit: whether a detection matches an object.
        fate: of an object: won, lost, or empty.
        found_by: roles of the models that find an object.
    """

    box: Required[Corners]
    name: Required[str]
    conf: Number
    hit: bool
    fate: str
    found_by: list[str]


class ImageLook(TypedDict):
    """One image that the page shows.

    Attributes:
        file: its name in the data set.
        picture: its copy beside looks.json.
        reason: by which rule it was chosen.
        width: of the copy [pixels].
        height: of the copy [pixels].
        won: objects that the student finds and the reference misses.
        lost: objects that the reference finds and the student misses.
        objects: labelled.
        detections: by role.
        maps: attention maps as picture files, by layer and role.
        correlation: with the teacher's map, by layer and role.
    """

    file: str
    picture: str
    reason: str
    width: int
    height: int
    won: int
    lost: int
    objects: list[Box]
    detections: dict[str, list[Box]]
    maps: dict[str, dict[str, str]]
    correlation: dict[str, dict[str, Number]]


class Tally(TypedDict):
    """How many objects were found, of all classes or of one.

    Attributes:
        objects: labelled.
        reference: found by the reference.
        student: found by the student.
        won: found by the student only.
        lost: found by the reference only.
    """

    objects: int
    reference: int
    student: int
    won: int
    lost: int


class Looks(TypedDict):
    """The contents of looks.json.

    Attributes:
        schema: `yolo-mkd/looks/1`.
        data: the data set's YAML file.
        imgsz: image size [pixels].
        examined: images on which accuracy and detections were measured.
        compared: images on which attention maps and relation matrices were compared.
        val_images: in the validation split.
        conf: smallest confidence of a detection.
        iou: smallest IoU of a detection with an object that it finds.
        reference: the role that the student is compared with, object by object.
        layers: compared, in order.
        models: from the teacher to the student.
        tally: of all classes.
        tally_by_class: by class name.
        images: that the page shows.
    """

    schema: str
    versions: dict[str, str]
    machine: dict[str, Any]
    data: str
    imgsz: int
    examined: int
    compared: int
    val_images: int
    conf: Number
    iou: Number
    reference: str
    layers: list[str]
    models: list[ModelLook]
    tally: Tally
    tally_by_class: dict[str, Tally]
    images: list[ImageLook]


class ExportBox(TypedDict):
    """A detection of an exported file or of its checkpoint; corners as shares of the image's width and height.

    Attributes:
        box: x1, y1, x2, y2.
        name: of its class.
        conf: its confidence.
        state: same, moved (its partner overlaps it less) or alone (without a partner on the other side).
    """

    box: list[float]
    name: str
    conf: float
    state: str


class ExportImage(TypedDict):
    """An image on which an exported file deviates from its checkpoint.

    Attributes:
        image: its name in the data set.
        picture: its copy beside exports.json.
        width: of the copy [pixels].
        height: of the copy [pixels].
        min_iou: over the pairs of boxes, in the file's report.
        max_score_difference: likewise.
        checkpoint_boxes: detected by the checkpoint.
        file_boxes: detected by the file.
    """

    image: str
    picture: InnerPath
    width: int
    height: int
    min_iou: float | None
    max_score_difference: float | None
    checkpoint_boxes: list[ExportBox]
    file_boxes: list[ExportBox]


class ExportLook(TypedDict):
    """An exported file in exports.json.

    Attributes:
        file: its name.
        sha256: of it.
        checkpoint: the name of the checkpoint that it was made from.
        checkpoint_sha256: of it.
        conf: smallest confidence of a detection.
        compared: images on which its check compared detections.
        images: the worst of them.
    """

    file: str
    sha256: str
    checkpoint: str
    checkpoint_sha256: str
    conf: float
    compared: int
    images: list[ExportImage]


class ExportLooks(TypedDict):
    """The contents of exports.json: `schema` yolo-mkd/export-images/1, versions and machine, and the files."""

    files: list[ExportLook]
