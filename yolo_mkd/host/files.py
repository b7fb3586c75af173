"""Find and check the user's arguments, data and model files as Ultralytics does."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    find_dataset_yaml,
    img2label_paths,
    verify_image_label,
)
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import LOGGER, SETTINGS, YAML
from ultralytics.utils.checks import check_file, check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from yolo_mkd.host.limits import check_values
from yolo_mkd.host.trust import may_run_downloads, no_installs, refuse_code
from yolo_mkd.settings import BadInput, shipped
from yolo_mkd.settings.errors import short

ARCHIVE = re.compile(r"https?://\S+\.(zip|tar|gz|tgz|xz|bz2|txz|tbz2)(\?\S*)?$", re.IGNORECASE)  # as Ultralytics has it
MOST_CLASSES = 100_000  # our choice: far more than any data set has
LARGEST = 2**24  # bytes of a YAML file
HEIF_READER = "pi_heif"  # the package that Ultralytics imports for an image that Pillow does not know
DAMAGED = (OSError, ValueError, TypeError, SyntaxError, RecursionError, yaml.YAMLError)  # errors of a file that is read


def arguments() -> dict[str, Any]:
    """Ultralytics' arguments with their defaults."""
    return {"augmentations": None, "save_dir": None, **DEFAULT_CFG_DICT}


def check_arguments(given: dict[str, Any]) -> None:
    """Check types and values of Ultralytics' own arguments by its own rules, by `check_values`, and `pretrained=`.

    Raises:
        BadInput: one is refused.
    """
    try:
        get_cfg(overrides=given)
    except (TypeError, ValueError, SyntaxError) as e:
        raise BadInput(one_line(e)) from e
    check_values(given)
    pretrained = given.get("pretrained")
    if pretrained is not None and not isinstance(pretrained, bool):
        if not str(pretrained).endswith(".pt"):
            raise BadInput(f"pretrained={short(pretrained)} must be true, false or a .pt file")
        refuse_code("pretrained", find_model("pretrained", pretrained))


def with_cfg_file(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with those of the file that `cfg=` names, as `yolo train cfg=file.yaml` joins them.

    Args:
        given: the user's arguments; they win over the file's.

    Raises:
        BadInput: the file is missing, or is not a YAML file of arguments.
    """
    if given.get("cfg") is None:
        return {k: v for k, v in given.items() if k != "cfg"}
    file = given["cfg"]
    try:
        found = load_bounded(Path(check_yaml(file)))
    except (*DAMAGED, AttributeError, AssertionError) as e:
        raise BadInput(f"cfg={short(file)} cannot be read ({one_line(e)[:160]}): give a YAML file of arguments") from e
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadInput(f"cfg={short(file)} contains no arguments: write lines such as epochs: 100")
    if permission := {"trust", "download"} & found.keys():
        raise BadInput(f"{min(permission)}= is not taken from a file (cfg={short(file)}): give it beside cfg=")
    own = {k: v for k, v in found.items() if v is not None and k not in {"cfg", "mode"}}
    return {**own, **{k: v for k, v in given.items() if k != "cfg"}}


def check_imgsz(imgsz: Any, model: DetectionModel, argument: str, key: str = "imgsz") -> None:
    """Refuse an image size that a model cannot process; Ultralytics would round it without an error.

    Raises:
        BadInput: it is not a whole number, or not a multiple of the model's largest stride.
    """
    stride = max(int(model.stride.max()), 32)
    if isinstance(imgsz, list | tuple) and key == "imgsz":
        longer = max((side for side in imgsz if isinstance(side, int)), default=640)
        raise BadInput(
            f"imgsz={short(imgsz)}: images are squares while training: give one number, for example imgsz={longer}, "
            "and rect=True for images that keep their shape"
        )
    if isinstance(imgsz, bool) or not isinstance(imgsz, int):
        raise BadInput(f"{key}={short(imgsz)} must be a whole number of pixels, for example {key}=640")
    if imgsz % stride or imgsz < stride:
        near = max(stride, round(imgsz / stride) * stride)
        raise BadInput(
            f"{key}={imgsz} is not a multiple of {stride}, the largest stride of {argument}: use {key}={near}"
        )


def description(data: Any, argument: str = "data") -> dict[str, Any]:
    """What the YAML file of a data set contains; nothing for an archive, an address, or a file that is not there.

    Args:
        data: the YAML file, its folder, or the name of one that Ultralytics ships.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: the file cannot be read, or has more classes than any data set.
    """
    name = str(data)
    try:
        places = (check_file(f"{name}{end}", hard=False, download=False) for end in ("", ".yaml", ".yml"))
        found = "" if "://" in name else next(filter(None, places), "")
        file = find_dataset_yaml(Path(found)) if found and Path(found).is_dir() else Path(found)
        contents = load_bounded(file) if file.suffix.lower() in {".yaml", ".yml"} else {}
    except (*DAMAGED, AssertionError, AttributeError) as e:
        raise BadInput(f"{argument}={short(data)} cannot be read ({one_line(e)[:160]}): give a data set's YAML") from e
    check_classes(contents, f"{argument}={short(data)}")
    return contents


def load_bounded(file: Path) -> dict[str, Any]:
    """The contents of a YAML file, read as Ultralytics does, if it is a regular file of a usual size.

    Raises:
        one of `DAMAGED`, AssertionError: it is not, or not a mapping.
    """
    if not file.is_file():
        raise FileNotFoundError("it is not a file")
    if file.stat().st_size > LARGEST:
        raise ValueError("it is larger than 16 MB")
    return dict(YAML.load(file))


def check_classes(contents: dict[str, Any], named: str) -> None:
    """Refuse a number of classes for which Ultralytics would fill the memory.

    Args:
        contents: of the YAML file of a data set or a model.
        named: how the message begins.

    Raises:
        BadInput: `nc:` or the classes in `names:` are too many; other mistakes are left to Ultralytics.
    """
    names, most = contents.get("names"), 0.0
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        most = float(contents.get("nc") or 0)
    most = max(most, len(names) if isinstance(names, dict | list) else 0)
    if most > MOST_CLASSES:
        raise BadInput(f"{named} has {most:.15g} classes, and {MOST_CLASSES} are the most: correct nc: or names:")


def check_download(data: Any, argument: str = "data") -> bool:
    """Whether Ultralytics may fetch a data set whose images are missing, by what its YAML has under `download:`.

    Args:
        data: the YAML file, or the name of one that Ultralytics ships.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: `download:` is code, the images are missing, and download=true was not given.
    """
    text = description(data, argument).get("download")
    if text is None or may_run_downloads() or (ARCHIVE.match(str(text)) and "\n" not in str(text)):
        return True
    try:
        check_det_dataset(data, autodownload=False)
    except FileNotFoundError as e:
        raise BadInput(
            f"{argument}={data}: images are missing, and its download: is code, which is not run: read it, then add "
            "download=true, or fetch the images yourself"
        ) from e
    return False


def check_data(data: Any, argument: str = "data", fetch: bool = True) -> dict[str, Any]:
    """Find and read a data set.

    Args:
        data: its YAML file, or the name of one that Ultralytics ships.
        argument: the argument that names it, for the message.
        fetch: let Ultralytics download the archive that its YAML names, and with download=true run the code there.

    Returns:
        Ultralytics' description: `names`, `nc`, `channels`, `train`, `val`, ...

    Raises:
        BadInput: missing, incomplete, or without images to train or validate on.
    """
    if data is None or data == "":
        raise BadInput(f"{argument}= is missing: give a data set's YAML file, for example {argument}=coco8.yaml")
    advice = "give the path of a data set's YAML file"
    try:
        if not fetch and "://" in str(data):
            raise FileNotFoundError("an address, and nothing is downloaded here")
        description(data, argument)
        with contextlib.nullcontext() if fetch else quiet():
            found = check_det_dataset(data, autodownload=fetch and check_download(data, argument))
    except BadInput:
        raise
    except (*DAMAGED, RuntimeError, KeyError, AssertionError, AttributeError) as e:
        raise BadInput(f"{argument}={data}: {one_line(e)}: {advice}") from e
    if found["channels"] != 3 or isinstance(found["channels"], bool):
        raise BadInput(
            f"{argument}={data}: channels: {short(found['channels'])}: yolo-mkd trains and exports models of 3 "
            "channels only: leave channels: out, so that grey images are read as colour, or use Ultralytics' own train"
        )
    for split in ("train", "val"):
        places = found[split] if isinstance(found[split], list) else [found[split]]
        try:
            any_image = any(images_in(Path(p)) for p in places)
        except (OSError, ValueError, TypeError) as e:  # no path, or a list of images that is no text
            raise BadInput(f"{argument}={data}: '{split}' cannot be read ({one_line(e)[:160]}): {advice}") from e
        if not any_image:
            where = ", ".join(map(str, places))
            raise BadInput(f"{argument}={data}: no images for '{split}' in {where}: check the paths in it")
    return dict(found)


def check_labels(data: dict[str, Any], task: str, argument: str = "data") -> None:
    """Refuse a data set whose labels are for another task; Ultralytics would fail only after creating the run's folder.

    Args:
        data: the data set, as `check_data` returns it.
        task: the task of a model that is to be trained on it.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: a pose set has no valid keypoint shape, or the first labelled image of a split has rows of another
            task.
    """
    if task == "detect":  # uses the boxes of every kind of label
        return
    source, shape = f"{argument}={data['yaml_file']}", data.get("kpt_shape") or []
    wanted = 5 + math.prod(shape) if shape else 0  # values in a row with keypoints
    if task == "pose":
        if [type(n) for n in shape] != [int, int] or shape[0] < 1 or shape[1] not in {2, 3}:
            raise BadInput(
                f"{source}: kpt_shape is {shape or 'missing'}: pose models need the number of keypoints and of values "
                "in each, for example kpt_shape: [17, 3]"
            )
        if data.get("flip_idx") and len(data["flip_idx"]) != shape[0]:
            count = len(data["flip_idx"])
            raise BadInput(f"{source}: flip_idx has {count} entries, kpt_shape {shape[0]} keypoints: make them equal")
    for split in ("train", "val"):
        file, counts = first_labels(data[split])
        if task == "pose" and (wrong := counts - {wanted}):
            raise BadInput(f"{source}: {file} has {min(wrong)} values in a row, kpt_shape {shape} needs {wanted}")
        if task != "pose" and counts and (min(counts) < 7 or counts == {wanted}):
            raise BadInput(
                f"{source}: {file} has no outlines, which a model of the task {task} needs: "
                "give a data set of this task, or a detector as model="
            )


def check_usable(data: dict[str, Any], task: str, single_cls: bool = False, argument: str = "data") -> None:
    """Refuse a data set in which Ultralytics would leave out every image of a split.

    Args:
        data: the data set, as `check_data` returns it.
        task: the task to train.
        single_cls: one class for all objects.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: no image of a split can be read together with its labels; the message has the first reason.
    """
    points, dimensions = (data.get("kpt_shape") or [0, 0])[:2]
    fixed = ("", task == "pose", len(data["names"]), points, dimensions, single_cls)
    for split in ("train", "val"):
        places = data[split] if isinstance(data[split], list) else [data[split]]
        images = [str(image) for place in places for image in images_in(Path(place))]
        pairs = zip(images, img2label_paths(images), strict=True)
        reason = ""
        for image_file, label_file in pairs:
            with no_installs():  # of a HEIF reader for whatever cannot be read
                image, *_, message = verify_image_label((image_file, label_file, *fixed))
            if image is not None:
                break
            reason = reason or unusable(image_file, one_line(message))
        else:
            raise BadInput(
                f"{argument}={data['yaml_file']}: none of the {len(images)} images for '{split}' can be used: {reason}"
            )


def unusable(image: str, message: str) -> str:
    """Why Ultralytics leaves an image out, by its message, which without a HEIF reader names that for any bad image."""
    if HEIF_READER not in message or is_heif(Path(image)):
        return message
    return f"{image}: it is damaged, or no image"


def is_heif(image: Path) -> bool:
    """Whether a file begins as HEIF images do, with a box of the type ftyp."""
    with image.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def first_labels(places: str | list[str]) -> tuple[str, set[int]]:
    """The first label file of a split that is not empty and the numbers of values in its rows; ("", {}) without one."""
    for place in [places] if isinstance(places, str) else places:
        for file in img2label_paths(images_in(Path(place))):
            rows = Path(file).read_text(encoding="utf-8-sig").splitlines() if Path(file).is_file() else []
            if counts := {len(row.split()) for row in rows if row.strip()}:
                return file, counts
    return "", set()


def images_in(place: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted, or those that a text file lists, in its order."""
    if place.is_file():
        lines = place.read_text(encoding="utf-8").splitlines()
        return [place.parent / line.strip() for line in lines if line.strip()]
    return sorted(p for p in place.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Ultralytics' log below warnings."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def find_model(argument: str, name: Any) -> str:
    """Find a model file as Ultralytics would, or in this project's `cfg/models` and `weights`.

    Args:
        argument: the argument that names it, for the message.
        name: a path, or a name such as yolo26n.pt, yolo26n.yaml or yolo26n-w125.yaml.

    Returns:
        The path of an existing .pt file, or of a .yaml that Ultralytics or `architecture` can read.

    Raises:
        BadInput: there is no such file, and it could not be downloaded.
    """
    name = str(name)
    path = Path(name)
    if path.suffix not in {".pt", ".yaml", ".yml"}:
        raise BadInput(f"{argument}={name} must be a .pt or a .yaml file, for example {argument}=yolo26n.pt")
    for candidate in (path, shipped("cfg") / "models" / name, shipped("weights") / name):
        if candidate.is_file():
            return str(candidate)
    if path.suffix == ".pt":
        return find_weights(argument, name)
    try:
        yaml_model_load(name)
    except (OSError, ValueError) as e:
        places = "here, in Ultralytics' models or in cfg/models"
        raise BadInput(f"{argument}={name}: no such file {places}: check the name, or give a path") from e
    return name


def find_weights(argument: str, name: str) -> str:
    """Find a .pt file in Ultralytics' weights folder or download it; see `find_model`."""
    path = Path(name)
    places = f"{path.absolute().parent} and {SETTINGS['weights_dir']}"
    if path.name not in GITHUB_ASSETS_NAMES and not name.startswith(("http", "ul:", "gs:")):
        raise BadInput(
            f"{argument}={name}: no such file; looked in {places}, and Ultralytics publishes none of that name: "
            "check the path"
        )
    try:
        return str(attempt_download_asset(name, retry=0, progress=True))
    except (OSError, RuntimeError, ValueError) as e:
        reason = f"and it could not be downloaded ({one_line(e)})"
        raise BadInput(f"{argument}={name}: no such file; looked in {places}, {reason}") from e


def one_line(error: BaseException) -> str:
    """An error's message on one line, without colour codes, emoji and surrounding punctuation."""
    text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]", "", str(error))
    return " ".join(text.split()).strip(" .:") or type(error).__name__
