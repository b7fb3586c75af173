"""Models: architectures, untrained and trained students, frozen teachers."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    SegmentationModel,
    load_checkpoint,
    yaml_model_load,
)
from ultralytics.utils import YAML

from yolo_mkd.host.files import one_line
from yolo_mkd.settings import BadInput

TASKS = {"detect": DetectionModel, "segment": SegmentationModel, "pose": PoseModel, "obb": OBBModel}
HEADS = {  # the task of each kind of head
    **dict.fromkeys(("Detect", "v10Detect"), "detect"),
    **dict.fromkeys(("Segment", "Segment26"), "segment"),
    **dict.fromkeys(("Pose", "Pose26"), "pose"),
    **dict.fromkeys(("OBB", "OBB26"), "obb"),
}
UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, TypeError, KeyError, AttributeError, ValueError)


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


def build(
    path: str,
    classes: int,
    channels: int = 3,
    keypoints: tuple[int, int] | None = None,
    argument: str = "model",
) -> DetectionModel:
    """An untrained YOLO from a .yaml, or a trained one from a .pt, in eval mode and float32.

    Args:
        path: the model's file.
        classes: how many classes the data has.
        channels: of the data's images.
        keypoints: number and dimensions of the data's keypoints, for a pose model.
        argument: which argument names it, for the message.

    Raises:
        BadInput: not a detection, segmentation, pose or oriented-box model.
    """
    if path.endswith(".pt"):
        return load_detector(argument, path)
    kind = TASKS[task(path, argument)]
    pose = {"data_kpt_shape": keypoints} if kind is PoseModel and keypoints else {}
    return kind({**architecture(path), "nc": classes}, ch=channels, nc=classes, verbose=False, **pose).eval()


def load_detector(argument: str, path: str, transformer: bool = False) -> DetectionModel:
    """A trained model from a .pt, unfused, in eval mode and float32.

    Args:
        argument: which argument names it, for the message.
        path: its file.
        transformer: accept an RT-DETR too.

    Raises:
        BadInput: unreadable, of another task, or fused for inference (one of its branches is gone).
    """
    try:
        model, _ = load_checkpoint(path)
    except UNREADABLE as e:
        raise BadInput(f"{argument}={path} cannot be read as an Ultralytics checkpoint: {one_line(e)[:160]}") from e
    accepted = {*HEADS, "RTDETRDecoder"} if transformer else HEADS
    if not isinstance(model, DetectionModel) or type(head(model)).__name__ not in accepted:
        kind = f"{type(model).__name__}, task {getattr(model, 'task', None)}"
        raise BadInput(f"{argument}={path} is no YOLO of the kinds {', '.join(TASKS)} ({kind}): give one of these")
    if model.is_fused():
        raise BadInput(
            f"{argument}={path} is fused for inference and has lost layers: give the checkpoint training wrote"
        )
    return model


def task(path: str, argument: str = "model") -> str:
    """The task of a model file: detect, segment, pose or obb.

    Args:
        path: the model's file.
        argument: which argument names it, for the message.

    Raises:
        BadInput: of another task, or no model at all.
    """
    if path.endswith(".pt"):
        return HEADS[type(head(load_detector(argument, path))).__name__]
    layers = architecture(path).get("head")
    if not layers:
        raise BadInput(f"{argument}={path} is no model: it has no head; give a model's .yaml or .pt")
    name = layers[-1][2]
    if name not in HEADS:
        raise BadInput(f"{argument}={path} ends in {name}: M-KD distils {', '.join(TASKS)} models of YOLO")
    return HEADS[name]


def architecture_name(path: str) -> str:
    """The name of the architecture behind a model file: `yolo26n` for yolo26n.yaml and for a checkpoint of it."""
    if path.endswith(".pt"):
        path = str(load_detector("model", path, transformer=True).yaml.get("yaml_file", ""))
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


class RemovedHead(nn.Module):
    """Replaces a detection head whose outputs are unused, such as a frozen RT-DETR's decoder."""

    def __init__(self, instead_of: Any):
        super().__init__()
        self.f, self.i = instead_of.f, instead_of.i

    def forward(self, *inputs: Any) -> dict[str, Any]:
        """Return no outputs."""
        return {}


def freeze(model: DetectionModel) -> DetectionModel:
    """Make a teacher that costs as little as it can: no gradients, fused layers, raw head outputs.

    The head alone is marked as training: then it returns its raw outputs and neither decodes nor sorts boxes that
    are unused. Its layers stay in eval mode. An RT-DETR's decoder, whose queries match no anchor, is taken out.
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
    """The precision for a frozen model beside a trainer's own.

    On a GPU it is the one that Ultralytics trains in. A processor trains in float32 unless told otherwise, and there a
    model without gradients still takes half the time where bfloat16 is native. `amp=False` keeps float32 everywhere.

    Args:
        trainer: one that is set up.
    """
    wanted = trainer.args.amp
    if trainer.amp:
        return torch.bfloat16 if wanted == "bf16" else torch.float16
    gains = trainer.device.type == "cpu" and native_bfloat16()
    return torch.bfloat16 if gains and wanted not in {False, "fp32"} else torch.float32


def native_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 itself (AVX-512 BF16, AMX); no where torch cannot tell."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
