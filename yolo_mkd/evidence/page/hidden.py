"""Read the hidden layers of a model that a page shows: of a detector, or of any network that was its teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from yolo_mkd import host
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.network_files import find_network, is_network, load_network
from yolo_mkd.distill.networks import Network, NetworkTeacher, network_spec
from yolo_mkd.host.spec import ModelSpec

Read = Callable[[Tensor], dict[str, Tensor]]  # images B 3 H W to features by layer


@dataclass(frozen=True)
class DetectorLayers:
    """The hidden layers of a detector."""

    model: Any
    spec: ModelSpec

    @contextmanager
    def reading(self, layers: Sequence[str]) -> Iterator[Read]:
        """What reads these layers, within."""
        extractor = FeatureExtractor(self.model, self.spec, list(layers))

        def read(images: Tensor) -> dict[str, Tensor]:
            self.model(images)
            return extractor.hooks.take()

        yield read
        extractor.hooks.remove()


@dataclass(frozen=True)
class NetworkLayers:
    """The maps of a network that were matched with the layers of a student."""

    network: Network
    student: ModelSpec
    imgsz: int

    @property
    def spec(self) -> ModelSpec:
        """The network's spec as the teacher of the student."""
        return network_spec(self.network, self.student, self.imgsz)[0]

    @contextmanager
    def reading(self, layers: Sequence[str]) -> Iterator[Read]:
        """What reads the maps of these layers, within."""
        maps = network_spec(self.network, self.student, self.imgsz)[1]
        teacher = NetworkTeacher(self.network.name, self.network, maps, layers)
        yield lambda images: teacher.infer(images).features
        teacher.hooks.remove()


def open_network(name: str) -> Network:
    """A network by its name, on the CPU.

    Raises:
        BadInput: it is not there, or is a program and not trusted.
    """
    network = load_network(find_network("teacher", name))
    network.model.to("cpu")  # a training may have left it elsewhere
    return network


def open_layers(role: str, name: str, imgsz: int, student: ModelSpec) -> DetectorLayers | NetworkLayers:
    """The hidden layers of a model.

    Args:
        role: of the model, for messages.
        name: its file, or the name of a network.
        imgsz: image size that it takes [pixels].
        student: with whose layers those of a network are matched.

    Raises:
        BadInput: it cannot be loaded.
    """
    if is_network(name):
        return NetworkLayers(open_network(name), student, imgsz)
    model = host.load_detector(role, name, transformer=True)
    return DetectorLayers(model, host.model_spec(model, imgsz))
