"""The only door to Ultralytics' internals. Read in version 8.4.190; what else of it the project uses is public API."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.cfg import get_save_dir as ultralytics_save_dir
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils import LOGGER, SETTINGS, YAML
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
from ultralytics.utils.torch_utils import get_flops, unwrap_model

from yolo_mkd.knowledge import Outputs
from yolo_mkd.settings import BadInput, shipped
from yolo_mkd.taps import Anatomy, Tap

__all__ = ["LOGGER", "DetectionTrainer", "unwrap_model"]

UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, TypeError, KeyError, AttributeError, ValueError)


# Arguments, data and files of the user's


def arguments() -> set[str]:
    """The names of Ultralytics' arguments."""
    return {*DEFAULT_CFG_DICT, "augmentations", "save_dir"}


def check_arguments(given: dict[str, Any]) -> None:
    """Let Ultralytics check its own arguments' types and values.

    Raises:
        BadInput: Ultralytics refuses one; the message is its own.
    """
    try:
        get_cfg(overrides=given)
    except (TypeError, ValueError, SyntaxError) as e:
        raise BadInput(one_line(e)) from e


def check_imgsz(imgsz: Any, model: DetectionModel, argument: str) -> None:
    """Refuse an image size that a model cannot take; Ultralytics would silently round it.

    Raises:
        BadInput: no whole number, or no multiple of the model's largest stride.
    """
    stride = max(int(model.stride.max()), 32)
    if isinstance(imgsz, bool) or not isinstance(imgsz, int):
        raise BadInput(f"imgsz={imgsz} is no number of pixels: use for example imgsz=640")
    if imgsz % stride or imgsz < stride:
        near = max(stride, round(imgsz / stride) * stride)
        raise BadInput(
            f"imgsz={imgsz} is not a multiple of {stride}, the largest stride of {argument}: use imgsz={near}"
        )


def check_data(data: Any, argument: str = "data", fetch: bool = True) -> dict[str, Any]:
    """Find and read a data set.

    Args:
        data: its YAML file, or a name that Ultralytics knows.
        argument: which argument names it, for the message.
        fetch: let Ultralytics download a set that it knows.

    Returns:
        Ultralytics' description: `names`, `nc`, `channels`, `train`, `val`, ...

    Raises:
        BadInput: missing, incomplete, or without images to train or validate on.
    """
    advice = "give the path of a data set's YAML file"
    try:
        with contextlib.nullcontext() if fetch else quiet():
            found = check_det_dataset(data, autodownload=fetch)
    except (OSError, SyntaxError, TypeError, ValueError, RuntimeError, KeyError, AssertionError) as e:
        raise BadInput(f"{argument}={data}: {one_line(e)}: {advice}") from e
    for split in ("train", "val"):
        places = found[split] if isinstance(found[split], list) else [found[split]]
        if not any(images_in(Path(p)) for p in places):
            where = ", ".join(map(str, places))
            raise BadInput(f"{argument}={data}: no images for '{split}' in {where}: check the paths in it")
    return dict(found)


def images_in(place: Path) -> list[Path]:
    """The images in a folder and below it, or those that a text file lists; sorted, or in the list's order."""
    if place.is_file():
        lines = place.read_text(encoding="utf-8").splitlines()
        return [place.parent / line.strip() for line in lines if line.strip()]
    return sorted(p for p in place.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let only Ultralytics' warnings through."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def find_model(argument: str, name: Any) -> str:
    """Find a model file as Ultralytics would, or among this project's `cfg/models` and `weights`.

    Args:
        argument: which argument names it, for the message.
        name: a path, or a name such as yolo26n.pt, yolo26n.yaml or yolo26n-w125.yaml.

    Returns:
        The path of an existing .pt file, or of a .yaml that Ultralytics or `architecture` can read.

    Raises:
        BadInput: no such file, and it could not be downloaded.
    """
    name = str(name)
    path = Path(name)
    if path.suffix not in {".pt", ".yaml", ".yml"}:
        raise BadInput(f"{argument}={name} is neither a .pt nor a .yaml file")
    for candidate in (path, shipped("cfg") / "models" / name, shipped("weights") / name):
        if candidate.is_file():
            return str(candidate)
    if path.suffix == ".pt":
        return find_weights(argument, name)
    try:
        yaml_model_load(name)
    except (OSError, ValueError) as e:
        raise BadInput(f"{argument}={name}: no such file here, in Ultralytics' models or in cfg/models") from e
    return name


def find_weights(argument: str, name: str) -> str:
    """Find a .pt file in Ultralytics' weights folder or download it, as `find_model` says."""
    path = Path(name)
    places = f"{path.absolute().parent} and {SETTINGS['weights_dir']}"
    if path.name not in GITHUB_ASSETS_NAMES and not name.startswith(("http", "ul:", "gs:")):
        raise BadInput(
            f"{argument}={name}: no such file; looked in {places}, and Ultralytics publishes none of that name"
        )
    try:
        return str(attempt_download_asset(name, retry=0, progress=True))
    except (OSError, RuntimeError, ValueError) as e:
        reason = f"and it could not be downloaded ({one_line(e)})"
        raise BadInput(f"{argument}={name}: no such file; looked in {places}, {reason}") from e


def one_line(error: BaseException) -> str:
    """An error's message on one line, without decoration."""
    text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]", "", str(error))
    return " ".join(text.split()).strip(" .:") or type(error).__name__


def run_folder(project: str | None, name: str | None, exist_ok: bool) -> Path:
    """The folder of a new chain, by Ultralytics' rules for `project=` and `name=`: runs/mkd/train, train2, ..."""
    args = SimpleNamespace(project=project, name=name, task="mkd", mode="train", exist_ok=exist_ok)
    return Path(ultralytics_save_dir(args))


def newest_chain() -> Path | None:
    """The chain folder most recently written under Ultralytics' runs folder."""
    found = Path(SETTINGS["runs_dir"]).glob("mkd/**/chain.yaml")
    return max((p.parent for p in found), key=lambda p: (p / "chain.yaml").stat().st_mtime, default=None)


# Models


def architecture(path: str) -> dict[str, Any]:
    """The full architecture of a model .yaml, also of this project's, which name a base of Ultralytics' and a width."""
    text = YAML.load(path) if Path(path).is_file() else {}
    if "base" not in text:
        return dict(yaml_model_load(path))
    full = dict(yaml_model_load(text["base"]))
    full["scales"] = {"n": [text["depth"], text["width"], text["max_channels"]]}  # a narrower nano
    return {**full, "scale": "n", "yaml_file": Path(path).name}


def write_architecture(path: str, folder: Path) -> str:
    """A model file that stock Ultralytics reads: a .yaml of this project's is written out in full into `folder`."""
    if path.endswith(".pt") or not Path(path).is_file() or "base" not in YAML.load(path):
        return path
    target = folder / Path(path).name
    YAML.save(target, {k: v for k, v in architecture(path).items() if k not in {"scale", "yaml_file"}})
    return str(target)


def build(path: str, classes: int, channels: int = 3, argument: str = "model") -> DetectionModel:
    """An untrained detector from a .yaml, or a trained one from a .pt, in eval mode and float32.

    Raises:
        BadInput: not a detector.
    """
    if path.endswith(".pt"):
        return load_detector(argument, path)
    cfg = architecture(path)
    if cfg["head"][-1][2] not in {"Detect", "v10Detect"}:
        raise BadInput(f"{argument}={path} ends in {cfg['head'][-1][2]}: M-KD distils detectors (Detect)")
    return DetectionModel({**cfg, "nc": classes}, ch=channels, nc=classes, verbose=False).eval()


def load_detector(argument: str, path: str) -> DetectionModel:
    """A trained detector from a .pt, unfused, in eval mode and float32.

    Raises:
        BadInput: unreadable, of another task, or fused for inference (one of its branches is gone).
    """
    try:
        model, _ = load_checkpoint(path)
    except UNREADABLE as e:
        raise BadInput(f"{argument}={path} cannot be read as an Ultralytics checkpoint: {one_line(e)[:160]}") from e
    if not isinstance(model, DetectionModel) or model.task != "detect" or not isinstance(head(model), Detect):
        kind = f"{type(model).__name__}, task {getattr(model, 'task', None)}"
        raise BadInput(f"{argument}={path} is no YOLO detector ({kind}): give a detection model")
    if model.is_fused():
        raise BadInput(
            f"{argument}={path} is fused for inference and has lost layers: give the checkpoint training wrote"
        )
    return model


def architecture_name(path: str) -> str:
    """The name of the architecture behind a model file: `yolo26n` for yolo26n.yaml and for a checkpoint of it."""
    if path.endswith(".pt"):
        path = str(load_detector("model", path).yaml.get("yaml_file", ""))
    return Path(path).stem


@functools.cache
def parameters(path: str) -> int:
    """How many parameters the model of a .pt or .yaml has, at its own or 80 classes."""
    return sum(p.numel() for p in build(path, classes=80).parameters())


def layer(model: nn.Module, index: int) -> nn.Module:
    """A model's layer by its index in the architecture."""
    layers = model.model
    assert isinstance(layers, nn.Sequential)
    return layers[index]


def head(model: nn.Module) -> Any:
    """A model's last layer."""
    return layer(model, -1)


def freeze(model: DetectionModel) -> DetectionModel:
    """Make a teacher: no gradients, fixed statistics, raw head outputs.

    The head alone is marked as training: then it returns its raw outputs and neither decodes nor sorts boxes that
    nobody reads. Its layers stay in eval mode.
    """
    model.eval().requires_grad_(False)
    head(model).training = True
    return model


@torch.no_grad()
def anatomy(model: DetectionModel, imgsz: int) -> Anatomy:
    """Find a detector's layers by role, with one forward pass over an empty image.

    Args:
        model: a YOLO detector; its weights and statistics are not touched.
        imgsz: image size that the shapes are for [pixels], rounded up to the model's stride as Ultralytics does.
    """
    shapes: dict[int, torch.Size] = {}
    largest = max(int(model.stride.max()), 32)
    imgsz = math.ceil(imgsz / largest) * largest

    def keep(i: int) -> Any:
        return lambda module, inputs, output: shapes.update({i: output.shape}) if isinstance(output, Tensor) else None

    handles = [m.register_forward_hook(keep(i)) for i, m in enumerate(model.model[:-1])]
    modes = {m: m.training for m in model.modules()}
    channels = int(model.yaml.get("channels", 3))
    try:
        model.eval()(torch.zeros(1, channels, imgsz, imgsz).to(next(model.parameters())))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training

    end = head(model)
    strides = tuple(int(s) for s in end.stride)
    taps: dict[str, Tap] = {}
    backbone = range(min(len(model.yaml["backbone"]), len(shapes)))
    for s in strides:
        at = [i for i in backbone if i in shapes and len(shapes[i]) == 4 and imgsz // s == shapes[i][3]]
        if at and at[-1] not in end.f:
            taps[f"backbone_p{int(math.log2(s))}"] = Tap(at[-1], *shapes[at[-1]][1:])
    for i, s in zip(end.f, strides, strict=True):
        taps[f"neck_p{int(math.log2(s))}"] = Tap(i, *shapes[i][1:])
    return Anatomy(
        names=dict(model.names),
        strides=strides,
        branches=("one2many", "one2one") if getattr(end, "one2one_cv2", None) is not None else ("one2many",),
        reg_max=int(end.reg_max),
        taps=taps,
        channels=channels,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def outputs(raw: Any, strides: tuple[int, ...], reg_max: int) -> tuple[dict[str, Outputs], dict[int, tuple[int, int]]]:
    """Read a detection head's raw outputs.

    Args:
        raw: what the model returned, in training or in eval mode.
        strides: of the head's levels.
        reg_max: bins of a box side's distribution, 1 for none.

    Returns:
        The outputs by branch, and rows and columns of each level by stride.
    """
    raw = raw[1] if isinstance(raw, tuple) else raw
    branches = raw if "one2many" in raw else {"one2many": raw}
    feats = branches["one2many"]["feats"]
    levels = {s: (f.shape[2], f.shape[3]) for s, f in zip(strides, feats, strict=True)}
    read = {}
    for name, branch in branches.items():
        boxes, bins = branch["boxes"].float(), None  # B 4K A
        if reg_max > 1:
            bins = boxes.unflatten(1, (4, reg_max))  # B 4 K A, side-major
            boxes = torch.einsum("bska,k->bsa", bins.softmax(2), torch.arange(reg_max).to(bins))
        read[name] = Outputs(branch["scores"].float(), boxes, bins)
    return read, levels


def resumable(last: Path) -> bool:
    """Whether a checkpoint is of an unfinished run, with the optimizer's state to go on from."""
    if not last.is_file():
        return False
    try:
        _, ckpt = load_checkpoint(last)
    except UNREADABLE:  # cut off while it was written
        return False
    return ckpt.get("epoch", -1) >= 0 and ckpt.get("optimizer") is not None


def metrics(best: Path) -> dict[str, float]:
    """The accuracy stored in a finished run's checkpoint."""
    found = load_checkpoint(best)[1]["train_metrics"]
    names = {"map50_95": "mAP50-95(B)", "map50": "mAP50(B)", "precision": "precision(B)", "recall": "recall(B)"}
    return {ours: round(float(found[f"metrics/{theirs}"]), 5) for ours, theirs in names.items()}


def size(path: Path, imgsz: int) -> dict[str, float]:
    """Parameters and GFLOPs of a trained detector at an image size, counted as Ultralytics prints them."""
    model = load_checkpoint(path)[0]
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflops": round(get_flops(model, imgsz), 3)}


def discard_empty_run(folder: Path) -> None:
    """Remove the folder of a run that was refused before it trained, if it holds no more than its arguments."""
    with contextlib.suppress(OSError):  # anything else in there is somebody's work, and stays
        (folder / "weights").rmdir()
        (folder / "args.yaml").unlink(missing_ok=True)
        folder.rmdir()
