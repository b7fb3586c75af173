"""Forward hooks that collect the features of chosen layers, by role, and what they and the head output as a value."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from yolo_mkd import host
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge


class FeatureHooks:
    """Hooks on the given layers. They collect only while `open`, and hold nothing once their features are taken.

    Attributes:
        open: whether the next forward pass is collected.
    """

    def __init__(self, layers: dict[str, nn.Module]):
        """Put one hook on each layer.

        Args:
            layers: the layer of each role.
        """
        self.open = True
        self._layers = {role: (layer, self._keeper(role)) for role, layer in layers.items()}
        self._features: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self.attach()

    def attach(self) -> None:
        """Put the hooks on, where they were removed."""
        if not self._handles:
            self._handles = [layer.register_forward_hook(hook) for layer, hook in self._layers.values()]

    def _keeper(self, role: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.open:
                self._features[role] = output

        return keep

    def take(self) -> dict[str, Tensor]:
        """Return the features of the last forward pass by role, each B C H W, and let go of them."""
        features, self._features = self._features, {}
        return features

    def remove(self) -> None:
        """Remove the hooks; the layers are as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._features = [], {}


class FeatureExtractor:
    """Collects what one model outputs in a forward pass: head and hidden layers.

    Attributes:
        spec: the model's spec.
        hooks: on its hidden layers.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, roles: list[str]):
        """Put hooks on a model.

        Args:
            model: a YOLO detector.
            spec: its spec.
            roles: the hidden layers to collect.
        """
        self.spec = spec
        self.hooks = FeatureHooks({role: host.layer(model, spec.layers[role].layer) for role in roles})

    def collect(self, raw: Any) -> Knowledge:
        """The outputs of the model's last forward pass, whose raw head outputs are given."""
        spec = self.spec
        branches, levels = host.outputs(raw, spec.strides, spec.reg_max, spec.keypoints)
        return Knowledge(branches, self.hooks.take(), levels)
