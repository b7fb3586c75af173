"""How a network is named as a teacher, and loaded: a function, TorchScript, ONNX, torchvision or timm."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from yolo_mkd import host
from yolo_mkd.distill.networks import Network
from yolo_mkd.distill.onnx_network import OnnxMaps
from yolo_mkd.settings import BadInput

PYTHON = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)$")
SCRIPTS = {".torchscript", ".ts"}
ONNX = ".onnx"
TORCHVISION, TIMM = "torchvision:", "timm:"
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of weights, as timm looks for them


def is_network(teacher: str) -> bool:
    """Whether a teacher is named as a network that is not a detector of Ultralytics."""
    named = teacher.startswith((TORCHVISION, TIMM)) or PYTHON.match(teacher)
    return bool(named or Path(teacher).suffix in {*SCRIPTS, ONNX})


def file_of(teacher: str) -> Path | None:
    """The file that a network is in; None for one of torchvision or timm."""
    match = PYTHON.match(teacher)
    return None if teacher.startswith((TORCHVISION, TIMM)) else Path(match["file"] if match else teacher)


def files_of(teacher: str) -> list[Path]:
    """All files that a network is in: with its own, those in which an ONNX file keeps its weights."""
    file = file_of(teacher)
    if file is None:
        return []
    return [file, *(OnnxMaps.weight_files(file) if file.suffix == ONNX else [])]


def find_network(argument: str, teacher: str) -> str:
    """The name of a network with the full path of its file.

    Raises:
        BadInput: there is no such file, or it may not run.
    """
    file = file_of(teacher)
    if file is None:
        return teacher
    if not file.is_file():
        raise BadInput(f"{argument}={teacher}: no such file: check the path")
    if file.suffix != ONNX and not host.trusts():
        raise BadInput(f"{argument}={teacher} is a program, and is run only with trust=true: read it, then add that")
    return str(file.resolve()) + teacher[len(str(file)) :]


@functools.cache
def load_network(teacher: str) -> Network:
    """Load a network by its name, as `find_network` gives it.

    Raises:
        BadInput: it cannot be loaded, returns another object than a module, or is not on this disk.
    """
    if teacher.startswith(TORCHVISION):
        return of_torchvision(teacher)
    if teacher.startswith(TIMM):
        return of_timm(teacher)
    match, kind = PYTHON.match(teacher), "TorchScript"
    try:
        if match:
            kind = "the function"
            spec = importlib.util.spec_from_file_location("yolo_mkd_teacher", match["file"])
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            model = getattr(module, match["function"])()
        elif Path(teacher).suffix == ONNX:
            kind = "ONNX"
            model = OnnxMaps(Path(teacher))
        else:
            model = torch.jit.load(teacher, map_location="cpu")
    except BadInput:
        raise
    except Exception as error:  # the user's own code, or a file that is something else
        raise BadInput(f"teacher={teacher} cannot be loaded as {kind} ({reason(error)})") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"teacher={teacher} returned an object of type {type(model).__name__}: return a torch.nn.Module")
    return Network(teacher, model, model)


def may_fetch(teacher: str, where: str) -> None:
    """Refuse weights that are not on this disk, unless `download=true` was given on a machine with a connection.

    Args:
        teacher: its name.
        where: they are, for the message.

    Raises:
        BadInput: see above.
    """
    missing = f"teacher={teacher}: its weights are not on this disk ({where})"
    if not host.may_run_downloads():
        raise BadInput(f"{missing}, and they are downloaded only with download=true: add that, or fetch them yourself")
    if not host.is_online():
        raise BadInput(f"{missing}, and this machine is offline: fetch them on another one")


def of_torchvision(teacher: str) -> Network:
    """A network of torchvision with its default weights, from PyTorch's cache or, with `download=true`, fetched.

    Raises:
        BadInput: torchvision has none of that name, or its weights are not on this disk or damaged.
    """
    import torchvision

    name = teacher.removeprefix(TORCHVISION)
    if name not in torchvision.models.list_models():
        raise BadInput(
            f"teacher={teacher}: torchvision has no model of that name: see torchvision.models.list_models()"
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file():
        may_fetch(teacher, f"{file}, from {weights.url}")
    model = torchvision.models.get_model(name, weights=None, **({"weights_backbone": None} if "/" in name else {}))
    try:
        if not file.is_file():
            torch.hub.download_url_to_file(weights.url, str(file), progress=False)
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file, or a connection that broke
        raise unloadable(teacher, error) from error
    transforms = weights.transforms()
    size = getattr(model, "image_size", None)  # of vision transformers, which take one size alone
    return Network(teacher, model, SimpleNamespace(mean=transforms.mean, std=transforms.std, input_size=size))


def of_timm(teacher: str) -> Network:
    """A network of timm with its weights, from the cache of Hugging Face or PyTorch or, with `download=true`, fetched.

    It declares the mean, std and, where it takes one alone, the image size of its weights' configuration.

    Raises:
        BadInput: timm is not installed, has no weights of that name, or they are not on this disk or damaged.
    """
    try:
        import timm
    except ImportError as error:
        raise BadInput(f"teacher={teacher} needs the package timm, which is not installed: pip install timm") from error

    name = teacher.removeprefix(TIMM)
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None or not config.has_weights:
        raise BadInput(f"teacher={teacher}: timm has no weights of that name: see timm.list_pretrained()")
    file = timm_weights(config)
    if file is None:
        may_fetch(teacher, f"{config.hf_hub_id or config.url}")
    try:
        given = {} if file is None else {"pretrained_cfg_overlay": {"file": str(file)}}
        model = timm.create_model(name, pretrained=True, **given)
    except Exception as error:  # a damaged file, or a connection that broke
        raise unloadable(teacher, error) from error
    size = config.input_size[-1] if config.fixed_input_size else None
    return Network(teacher, model, SimpleNamespace(mean=config.mean, std=config.std, input_size=size))


def timm_weights(config: Any) -> Path | None:
    """The file of timm's weights in the cache of Hugging Face or PyTorch; None without."""
    from huggingface_hub import try_to_load_from_cache

    if config.hf_hub_id:
        for name in [config.hf_hub_filename] if config.hf_hub_filename else TIMM_FILES:
            repository, _, revision = config.hf_hub_id.partition("@")
            if isinstance(found := try_to_load_from_cache(repository, name, revision=revision or None), str):
                return Path(found)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url or "none").name
    return file if file.is_file() else None


def unloadable(teacher: str, error: Exception) -> BadInput:
    """The refusal of a network whose weights cannot be loaded."""
    return BadInput(f"teacher={teacher}: its weights cannot be loaded ({reason(error)}): fetch them again")


def reason(error: Exception) -> str:
    """The first sentence of an error."""
    return host.one_line(error).split(". ")[0][:160]
