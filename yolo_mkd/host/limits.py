"""Values of Ultralytics' arguments that its own check accepts although training with them fails or ignores them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import CFG_FLOAT_KEYS, CFG_FRACTION_KEYS, CFG_INT_KEYS
from ultralytics.utils.torch_utils import parse_device

from yolo_mkd.settings import BadInput, number
from yolo_mkd.settings.errors import short

NUMBERS = {*CFG_FLOAT_KEYS, *CFG_FRACTION_KEYS, *CFG_INT_KEYS} - {"multi_scale"}  # which was a switch once
OPTIMIZERS = ("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop")
CHOICES: dict[str, tuple[Any, ...]] = {  # of arguments whose other values Ultralytics ignores, or fails at in training
    "cache": (True, False, "ram", "disk"),
    "compile": (True, False, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "copy_paste_mode": ("flip", "mixup"),
    "split": ("train", "val", "test", "minival"),
}
HIGHEST_SEED = 2**32 - 1  # of numpy


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse values of Ultralytics' arguments that cannot work, before anything is written.

    Args:
        given: arguments by name; those without a rule here are left to Ultralytics.

    Raises:
        BadInput: a number is NaN or infinite, a value is none of the `CHOICES`, or augmentations, batch, optimizer,
            seed, freeze or device cannot be used.
    """
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{name}={value} must be a finite number")
        if isinstance(value, bool) and name in NUMBERS:
            raise BadInput(f"{name}={value} must be a number")
        if value is not None and name in CHOICES and not is_one_of(value, CHOICES[name]):
            known = ", ".join(str(choice).lower() for choice in CHOICES[name])
            raise BadInput(f"{name}={short(value)} is not known: choose from {known}")
    checks = {
        "augmentations": check_augmentations,
        "batch": check_batch,
        "optimizer": check_optimizer,
        "seed": check_seed,
        "device": check_device,
    }
    for name, check in checks.items():
        if given.get(name) is not None:
            check(given[name])
    frozen_layers(given.get("freeze"))


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Whether a value is among some, of its own type; text in capitals too, as Ultralytics takes it."""
    if isinstance(value, str):
        value = value.lower()
    return any(type(value) is type(choice) and value == choice for choice in choices)


def check_augmentations(value: Any) -> None:
    """Refuse what is not a list of Albumentations' transforms, which Ultralytics would index."""
    if not isinstance(value, list | tuple) or any(isinstance(one, str | int | float | type(None)) for one in value):
        raise BadInput(
            f"augmentations={short(value)} must be a list of Albumentations' transforms, which only Python can give"
        )


def check_batch(value: Any) -> None:
    """Refuse a batch size that is neither images, a share of the GPU's memory nor -1."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole and (value >= 1 or value == -1)) or (isinstance(value, float) and 0 < value < 1):
        return
    raise BadInput(
        f"batch={short(value)} must be a whole number of images, -1 to fit the GPU, or a share of its memory below 1, "
        "for example batch=16"
    )


def check_optimizer(value: Any) -> None:
    """Refuse an optimizer that Ultralytics does not have."""
    if str(value).lower() not in map(str.lower, OPTIMIZERS):
        raise BadInput(f"optimizer={short(value)} is not known: choose from {', '.join(OPTIMIZERS)}")


def check_seed(value: Any) -> None:
    """Refuse a seed that numpy does not take."""
    number("seed", value, whole=True, low=0, high=HIGHEST_SEED, example=0)


def check_device(value: Any) -> None:
    """Refuse a CUDA device that this machine does not have; other kinds are left to Ultralytics."""
    try:
        name = str(parse_device(value))
    except (ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise BadInput(f"device={short(value)} cannot be used: write for example device=cpu or device=0") from e
    if not name or name.startswith(("cpu", "mps", "npu", "xpu", "tpu", "intel", "vulkan")):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if all(part.isdigit() and int(part) < count for part in name.split(",")):
        return
    found = f"this machine has {count} CUDA GPU{'s' if count > 1 else ''}" if count else "no CUDA GPU was found"
    usable = f"device=0 to device={count - 1}" if count > 1 else "device=0" if count else "device=cpu"
    raise BadInput(f"device={short(value)} cannot be used, since {found}: use {usable}, or leave it out")


def frozen_layers(freeze: Any) -> int | list[int | str] | None:
    """The value of `freeze=` as Ultralytics takes it: a number of layers, or a list, also where a tuple is given.

    Raises:
        BadInput: it is neither.
    """
    if freeze is None:
        return None
    layers = list(freeze) if isinstance(freeze, list | tuple) else freeze
    indices = layers if isinstance(layers, list) else [layers]
    valid = (int, str) if isinstance(layers, list) else (int,)
    if all(isinstance(i, valid) and not isinstance(i, bool) and (isinstance(i, str) or i >= 0) for i in indices):
        return layers
    raise BadInput(
        f"freeze={short(freeze)} must be a number of layers from the first, or the indices of layers, for example "
        "freeze=10 or freeze=[0,1,2]"
    )


def check_freeze(freeze: Any, model: nn.Module, argument: str = "model") -> int | list[int | str] | None:
    """Refuse `freeze=` if it leaves nothing to train, or names a layer that the model does not have.

    Args:
        freeze: Ultralytics' argument.
        model: a detector.
        argument: the argument that names it, for the message.

    Returns:
        As `frozen_layers`.

    Raises:
        BadInput: see above.
    """
    layers = frozen_layers(freeze)
    if layers is None:
        return None
    count = len(list(model.model.children()))  # type: ignore[union-attr]
    listed = list(range(layers)) if isinstance(layers, int) else layers
    if isinstance(layers, list) and (missing := [i for i in layers if isinstance(i, int) and i >= count]):
        raise BadInput(f"freeze={short(freeze)}: {argument} has no layer {missing[0]}: its layers are 0 to {count - 1}")
    names = [f"model.{i}." for i in listed]
    if names and all(any(n in name for n in (*names, ".dfl")) for name, _ in model.named_parameters()):
        raise BadInput(
            f"freeze={short(freeze)} freezes all {count} layers of {argument}, so nothing is trained: "
            f"use a smaller number, for example freeze={count // 2}"
        )
    return layers
