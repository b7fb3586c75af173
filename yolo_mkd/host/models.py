"""Load and build models: architectures, students, frozen teachers."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
    yaml_model_load,
)
from ultralytics.utils import YAML

from yolo_mkd.host.files import check_classes, load_bounded, one_line
from yolo_mkd.host.trust import read_checkpoint
from yolo_mkd.settings import BadInput
from yolo_mkd.settings.errors import short

TASKS = {"detect": DetectionModel, "segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
HEADS = {  # the task of each kind of head
    **dict.fromkeys(("Detect", "v10Detect"), "detect"),
    **dict.fromkeys(("Segment", "Segment26"), "segment"),
    **dict.fromkeys(("Pose", "Pose26"), "pose"),
    **dict.fromkeys(("OBB", "OBB26"), "obb"),
}
MOST_LAYERS, MOST_CHANNELS = 1000, 8192  # our choice: several times those of the largest YOLO models
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    TypeError,
    KeyError,
    AttributeError,
    ValueError,
    ImportError,
)


def architecture(path: str, argument: str = "model") -> dict[str, Any]:
    """The full architecture of a model .yaml; this project's own name an Ultralytics model as base, and a width.

    A file with a base may have a backbone and a head of its own in place of the base's.

    Raises:
        BadInput: the file cannot be read as an architecture, or its numbers are far larger than those of any model.
    """
    try:
        full = full_architecture(path)
        check_classes(full, f"{argument}={path}")
        check_size(full)
        return full
    except BadInput:
        raise
    except (*UNREADABLE, yaml.YAMLError, RecursionError, OverflowError, LookupError, AssertionError) as e:
        raise BadInput(
            f"{argument}={path} cannot be read as a model's architecture ({one_line(e)[:160]}): give a model's .yaml"
        ) from e


def full_architecture(path: str) -> dict[str, Any]:
    """As `architecture`, with the errors of an unreadable file."""
    text = load_bounded(Path(path)) if Path(path).is_file() else {}
    if "base" not in text:
        return dict(yaml_model_load(path))
    full = {**yaml_model_load(text["base"]), **{k: text[k] for k in ("backbone", "head") if k in text}}
    full["scales"] = {"n": [text["depth"], text["width"], text["max_channels"]]}  # a narrower nano
    return {**full, "scale": "n", "yaml_file": Path(path).name}


def check_size(full: dict[str, Any]) -> None:
    """Refuse an architecture that would fill the memory, or take hours to build.

    Args:
        full: as `full_architecture` returns it; what is not a number here is left to Ultralytics.

    Raises:
        ValueError: a number, or the number of layers, is far beyond that of any model.
    """
    rows = [row for part in ("backbone", "head") for row in full.get(part) or [] if isinstance(row, list)]
    scales = full.get("scales") or {}
    scale = scales.get(full.get("scale"), next(iter(scales.values()), [1])) if isinstance(scales, dict) else [1]
    depth = scale[0] if isinstance(scale, list) and scale and isinstance(scale[0], int | float) else 1
    repeats = [row[1] for row in rows if len(row) > 1 and isinstance(row[1], int | float)]
    if (layers := sum(max(1, count * depth) for count in repeats)) > MOST_LAYERS:
        raise ValueError(f"it has {layers:.15g} layers, and {MOST_LAYERS} are the most")
    pending: list[Any] = [rows, scales, *(full.get(key) for key in ("kpt_shape", "reg_max", "channels"))]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, int | float) and not abs(value) <= MOST_CHANNELS:  # also NaN
            raise ValueError(f"{short(value)} cannot be the size of a layer: the largest is {MOST_CHANNELS}")


def write_architecture(path: str, folder: Path) -> str:
    """A model file that stock Ultralytics can read: a .yaml with a base is written out in full to `folder`."""
    if path.endswith(".pt") or not Path(path).is_file() or "base" not in YAML.load(path):
        return path
    target = folder / Path(path).name
    YAML.save(target, {k: v for k, v in architecture(path).items() if k not in {"scale", "yaml_file"}})
    return str(target)


def build(
    path: str,
    classes: int,
    channels: int = 3,
    keypoints: tuple[int, int] | None = None,
    argument: str = "model",
) -> DetectionModel:
    """Build an untrained YOLO from a .yaml or load a trained one from a .pt, in eval mode and float32.

    Args:
        path: the model's file.
        classes: how many classes the data has.
        channels: of the data's images.
        keypoints: number and dimensions of the data's keypoints, for a pose model.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: it is not a detection, segmentation, pose or oriented-box model.
    """
    if path.endswith(".pt"):
        return load_detector(argument, path)
    kind = TASKS[task(path, argument)]
    pose = {"data_kpt_shape": keypoints} if kind is PoseModel and keypoints else {}
    full = {**architecture(path, argument), "nc": classes}
    try:
        return kind(full, ch=channels, nc=classes, verbose=False, **pose).eval()
    except KeyError as e:  # Ultralytics looks a module up by its name
        raise BadInput(
            f"{argument}={path} has the module {e.args[0]}, which this version of Ultralytics does not have: "
            "use its own modules"
        ) from e
    except Exception as e:  # of Ultralytics' parser, which checks nothing, or of any layer
        raise BadInput(f"{argument}={path} cannot be built ({one_line(e)[:160]}): check its layers") from e


def load_detector(argument: str, path: str, transformer: bool = False) -> DetectionModel:
    """Load a trained model from a .pt, unfused, in eval mode and float32.

    Args:
        argument: the argument that names it, for the message.
        path: its file.
        transformer: accept an RT-DETR too.

    Raises:
        BadInput: it is unreadable, holds code, has another task, or is fused for inference, which removes a branch.
    """
    try:
        model, _ = read_checkpoint(path, argument)
    except BadInput:
        raise
    except UNREADABLE as e:
        if isinstance(e, ModuleNotFoundError) and str(e.name).partition(".")[0] == "modelopt":
            raise BadInput(
                f"{argument}={path} was trained with quantize=8 and needs NVIDIA ModelOpt: pip install nvidia-modelopt"
            ) from e
        raise BadInput(
            f"{argument}={path} cannot be read as an Ultralytics checkpoint ({one_line(e)[:160]}): give another .pt"
        ) from e
    accepted = {*HEADS, "RTDETRDecoder"} if transformer else HEADS
    if not isinstance(model, DetectionModel) or type(head(model)).__name__ not in accepted:
        kind = f"{type(model).__name__}, task {getattr(model, 'task', None)}"
        raise BadInput(f"{argument}={path} ({kind}) must be a YOLO model of the task {', '.join(TASKS)}")
    if model.is_fused():
        raise BadInput(
            f"{argument}={path} is fused for inference, which removes layers: give the checkpoint that training wrote"
        )
    return model


def task(path: str, argument: str = "model") -> str:
    """The task of a model file: detect, segment, pose or obb.

    Args:
        path: the model's file.
        argument: the argument that names it, for the message.

    Raises:
        BadInput: it has another task, or is not a model.
    """
    if path.endswith(".pt"):
        return HEADS[type(head(load_detector(argument, path))).__name__]
    layers = architecture(path, argument).get("head")
    if not isinstance(layers, list) or not layers or not isinstance(layers[-1], list) or len(layers[-1]) < 3:
        raise BadInput(f"{argument}={path} has no head, so it is not a model: give a model's .yaml or .pt")
    name = layers[-1][2]
    if name not in HEADS:
        raise BadInput(f"{argument}={path} has the head {name}: it must be a YOLO model of the task {', '.join(TASKS)}")
    return HEADS[name]


def architecture_name(path: str) -> str:
    """The name of a model file's architecture: `yolo26n` for yolo26n.yaml and for a checkpoint of it."""
    if path.endswith(".pt"):
        path = str(load_detector("model", path, transformer=True).yaml.get("yaml_file", ""))
    return Path(path).stem


@functools.cache
def parameters(path: str) -> int:
    """The number of parameters of a .pt's or .yaml's model, with its own classes or 80."""
    return sum(p.numel() for p in build(path, classes=80).parameters())


def layer(model: nn.Module, index: int) -> nn.Module:
    """A model's layer by its index in the architecture."""
    layers = model.model
    assert isinstance(layers, nn.Sequential)
    return layers[index]


def head(model: nn.Module) -> Any:
    """A model's last layer."""
    return layer(model, -1)


class RemovedHead(nn.Module):
    """Replaces a detection head whose outputs are unused, such as a frozen RT-DETR's decoder."""

    def __init__(self, instead_of: Any):
        super().__init__()
        self.f, self.i = instead_of.f, instead_of.i

    def forward(self, *inputs: Any) -> dict[str, Any]:
        """Return no outputs."""
        return {}


def freeze(model: DetectionModel) -> DetectionModel:
    """Turn a model into a teacher at the lowest cost: no gradients, fused layers, raw head outputs.

    Only the head is marked as training: it then returns its raw outputs, without decoding and sorting boxes. Its layers
    stay in eval mode. An RT-DETR's decoder is removed, since its queries do not correspond to anchors.
    """
    model.eval().requires_grad_(False)
    if isinstance(head(model), RTDETRDecoder):
        remove_head(model)
    end = head(model)
    end.fuse = lambda: None  # Ultralytics' own would drop a branch
    model.fuse(verbose=False)
    del end.fuse
    end.training = True
    return model.to(memory_format=torch.channels_last)


def remove_head(model: DetectionModel) -> None:
    """Replace a head whose outputs are unused by one that computes nothing."""
    layers: Any = model.model
    layers[-1] = RemovedHead(head(model))


def frozen_precision(trainer: BaseTrainer) -> torch.dtype:
    """The precision of a frozen teacher beside a trainer's student.

    On a GPU it is the one that Ultralytics trains in. On a CPU Ultralytics trains in float32 by default; a teacher in
    bfloat16 takes half the time there if the processor supports it natively. `amp=False` keeps float32 everywhere.

    Args:
        trainer: an Ultralytics trainer that is set up.
    """
    wanted = trainer.args.amp
    if trainer.amp:
        return torch.bfloat16 if wanted == "bf16" else torch.float16
    is_faster = trainer.device.type == "cpu" and native_bfloat16()
    return torch.bfloat16 if is_faster and wanted not in {False, "fp32"} else torch.float32


def native_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions (AVX-512 BF16, AMX); False if torch cannot determine it."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
