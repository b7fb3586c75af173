"""A teacher that is any network: its hidden layers teach, and it needs no detection head.

Its maps are those that it returns, or else those of its blocks; `network_files` loads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.distill.hooks import FeatureHooks
from yolo_mkd.distill.onnx_network import OnnxMaps
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host.spec import LayerSpec, ModelSpec
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import BadInput

READINGS = {  # mean and standard deviation of what networks usually take, of images in [0, 1]
    "images in [0, 1]": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "images in [-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "images in [0, 255]": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "Caffe's mean, images in [0, 255]": ((0.485, 0.456, 0.406), (1 / 255, 1 / 255, 1 / 255)),
}
FARTHEST = 2.0  # powers of two between the grid of a map and that of a student's layer
MOST_TOKENS = 8  # class and register tokens before the patches


@dataclass(frozen=True)
class Map:
    """One map that a network computes.

    Attributes:
        place: the module that returns it, by its name, or its key or number among the network's outputs.
        hooked: whether it is a module's output.
        tokens: how many tokens come before the patches; None where it is a map already.
        last: whether the channels are the last axis.
        channels: how many it has.
        rows: of the grid, at a square image.
        columns: of the grid.
    """

    place: Any
    hooked: bool
    tokens: int | None
    last: bool
    channels: int
    rows: int
    columns: int

    def of(self, x: Tensor) -> Tensor:
        """The map as B C H W, patches laid out by row."""
        if self.tokens is not None:
            return x[:, self.tokens :].transpose(1, 2).unflatten(2, (self.rows, self.columns)).float()
        return (x.permute(0, 3, 1, 2) if self.last else x).float()


def map_of(place: Any, hooked: bool, x: Any, size: int) -> Map | None:
    """The map in an output for one square image, or None for anything else: B C H W, B H W C, or B tokens C.

    Args:
        place: as in `Map`.
        hooked: likewise.
        x: the output.
        size: of the image, of which a patch takes a whole part [pixels].
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[:1] != (1,):
        return None
    if x.ndim == 4 and x.shape[2] == x.shape[3] > 1:
        return Map(place, hooked, None, False, x.shape[1], x.shape[2], x.shape[3])
    if x.ndim == 4 and x.shape[1] == x.shape[2] > 1:
        return Map(place, hooked, None, True, x.shape[3], x.shape[1], x.shape[2])
    if x.ndim == 3:
        for tokens in range(min(MOST_TOKENS, x.shape[1] - 4) + 1):
            side = math.isqrt(x.shape[1] - tokens)
            if side > 1 and side * side == x.shape[1] - tokens and size % side == 0:
                return Map(place, hooked, tokens, True, x.shape[2], side, side)
    return None


class Network:
    """A frozen network with how it takes images.

    Attributes:
        name: as the user gives it.
        model: the network.
        mean: subtracted from images in [0, 1], by channel.
        std: that they are divided by.
        bgr: whether its channels are blue, green, red.
        size: the image size that it takes; None for any [pixels].
        parameters: how many it has.
    """

    def __init__(self, name: str, model: nn.Module, declared: Any):
        """Take a network and what it declares: `mean`, `std`, `channel_order`, `input_size`.

        Raises:
            BadInput: what it declares cannot be used.
        """
        self.name, self.model = name, model.eval()
        for parameter in model.parameters():
            parameter.requires_grad = False
        own = sum(p.numel() for p in model.parameters())
        self.parameters = model.parameter_count if isinstance(model, OnnxMaps) else own
        mean, std = READINGS["images in [0, 1]"]
        self.mean, self.std = (tuple(getattr(declared, n, d)) for n, d in (("mean", mean), ("std", std)))
        order, self.size = getattr(declared, "channel_order", "RGB"), getattr(declared, "input_size", None)
        valid = all(len(v) == 3 and all(isinstance(x, int | float) for x in v) for v in (self.mean, self.std))
        if not valid or min(self.std) <= 0 or order not in {"RGB", "BGR"}:
            raise BadInput(
                f"teacher={name} must declare mean and std as three numbers each and channel_order as RGB or BGR"
            )
        if self.size is not None and (not isinstance(self.size, int) or self.size < 32):
            raise BadInput(f"teacher={name}: its input_size must be a whole number of pixels, for example 224")
        self.bgr = order == "BGR"

    def prepared(self, images: Tensor) -> Tensor:
        """Images of a batch, B C H W in [0, 1], as the network takes them."""
        x = images.float()
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        x = x.flip(1) if self.bgr else x
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    @torch.no_grad()
    def maps(self, imgsz: int) -> list[Map]:
        """The maps that it computes from images of a size: those that it returns, or else those of its blocks.

        A single tensor that it returns is the end of a backbone, whose blocks have more maps.

        Raises:
            BadInput: it fails on such images.
        """
        size, blocks = self.size or imgsz, list[Map]()
        handles = []
        if not isinstance(self.model, torch.jit.ScriptModule):
            for name, module in blocks_of(self.model):
                handles.append(module.register_forward_hook(keeper(blocks, name, size)))
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        image = self.prepared(torch.zeros(1, 3, imgsz, imgsz, device=device))
        try:
            returned = self.model(image)
            if isinstance(self.model, OnnxMaps) and not self.model.declares_maps:
                blocks = maps_in(self.model(image, self.model.inside), size)
        except Exception as error:  # the user's own code
            raise BadInput(
                f"teacher={self.name} fails on an image of {size} pixels ({host.one_line(error)[:160]}): "
                "declare its input_size, or correct it"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        found, outputs = maps_in(returned, size), items_of(returned)
        single = isinstance(returned, Tensor) or (isinstance(self.model, OnnxMaps) and len(outputs) == 1)
        return blocks if blocks and (single or not found) else found


def maps_in(returned: Any, size: int) -> list[Map]:
    """The maps among the outputs of a network for one image of a size."""
    return [found for place, x in items_of(returned) if (found := map_of(place, False, x, size))]


def keeper(found: list[Map], name: str, size: int) -> Any:
    """A forward hook that appends a module's map."""

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if (one := map_of(name, True, output, size)) is not None:
            found.append(one)

    return keep


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a network, by name: modules with parts of their own in sequences and lists, or all modules."""
    lists = (nn.Sequential, nn.ModuleList)
    named = dict(model.named_modules())
    inside = [n for n, m in named.items() if n and isinstance(named[n.rpartition(".")[0]], lists)]
    blocks = [(n, named[n]) for n in inside if any(named[n].children()) and not isinstance(named[n], lists)]
    return blocks or [(n, m) for n, m in named.items() if n]


def items_of(returned: Any) -> list[tuple[Any, Any]]:
    """The outputs of a network by key or number."""
    if isinstance(returned, dict):
        return list(returned.items())
    return list(enumerate(returned)) if isinstance(returned, list | tuple) else [(0, returned)]


def network_spec(network: Network, student: ModelSpec, imgsz: int) -> tuple[ModelSpec, dict[str, Map]]:
    """The spec of a network as the teacher of a student, and the map that each role reads.

    A role has a map of the nearest grid. The roles of one grid are spread over its maps in order, the last one has the
    last map, and no map has two roles: where there are fewer maps, those roles have them whose own grid is nearest.

    Raises:
        BadInput: no map fits any layer of the student.
    """
    size = network.size or imgsz
    maps = network.maps(imgsz)
    of_grid: dict[int, list[tuple[float, str]]] = {}
    for role in student.layers:
        wanted = imgsz / 2 ** int(role.rpartition("_p")[2])
        rows = min({m.rows for m in maps}, key=lambda r: abs(math.log2(r / wanted)), default=0)
        if rows and (apart := abs(math.log2(rows / wanted))) <= FARTHEST:
            of_grid.setdefault(rows, []).append((apart, role))
    chosen: dict[str, Map] = {}
    for rows, wanting in of_grid.items():
        found = [m for m in maps if m.rows == rows]
        by_distance = sorted(reversed(wanting), key=lambda each: each[0])  # of equal ones the last, the neck's
        nearest = by_distance[: len(found)]
        roles = [role for apart, role in wanting if (apart, role) in nearest]
        chosen |= {role: found[math.ceil((k + 1) * len(found) / len(roles)) - 1] for k, role in enumerate(roles)}
    if not chosen:
        grids = ", ".join(f"{m.rows}x{m.columns}" for m in maps[:5]) or "none"
        raise BadInput(
            f"teacher={network.name}: no map of it fits a layer of the student at {size} pixels (found: {grids}): "
            "return maps of strides 8 to 32 from its forward, or declare an input_size of whole patches"
        )
    layers = {r: LayerSpec(i, *shape(chosen[r])) for i, r in enumerate(r for r in student.layers if r in chosen)}
    spec = ModelSpec(
        names={},
        strides=student.strides,
        branches=(),
        reg_max=1,
        rotated=False,
        layers=layers,
        channels=3,
        parameters=network.parameters,
        origin="a network without a detection head",
    )
    return spec, chosen


def shape(m: Map) -> tuple[int, int, int]:
    """Channels, rows and columns of a map."""
    return m.channels, m.rows, m.columns


class NetworkTeacher(LiveTeacher):
    """A network whose hidden layers teach; float32, since any code may be in it."""

    def __init__(self, name: str, network: Network, chosen: dict[str, Map], roles: Iterable[str]):
        """Put hooks on the blocks whose maps are read.

        Args:
            name: of the teacher, in tables and logs.
            network: the frozen network.
            chosen: the map of each role.
            roles: those that the terms read.
        """
        self.name, self.model, self.network = name, network.model, network
        self._chosen = {role: chosen[role] for role in roles}
        modules = dict(network.model.named_modules())
        self.hooks = FeatureHooks({r: modules[m.place] for r, m in self._chosen.items() if m.hooked})
        tensors = list(dict.fromkeys(m.place for m in self._chosen.values()))
        self._read = {"names": tensors} if isinstance(self.model, OnnxMaps) else {}
        self._stream: Any = None
        self._prefetched = None

    def to(self, precision: torch.dtype) -> None:
        """Nothing: a network stays in its own precision."""

    @torch.no_grad()
    def infer(self, images: Tensor) -> Knowledge:
        """The network's maps for images, B C H W in [0, 1], as features by role."""
        x = self.network.prepared(images)
        if any(m.tokens is not None for m in self._chosen.values()) and x.shape[2] != x.shape[3]:
            side = max(x.shape[2:])  # patches are laid out as a square
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        returned = dict(items_of(self.model(x, **self._read)))
        features = self.hooks.take()
        features |= {r: returned[m.place] for r, m in self._chosen.items() if not m.hooked}
        return Knowledge({}, {r: self._chosen[r].of(features[r]) for r in self._chosen})
