"""Taps: forward hooks that keep what chosen layers of a model say, by role, until it is taken."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class FeatureHooks:
    """Hooks on the given layers. They listen only while `open`, and hold nothing once taken."""

    def __init__(self, layers: dict[str, nn.Module]):
        """Put one hook on each layer.

        Args:
            layers: the layer of each role.
        """
        self.open = True
        self._features: dict[str, Tensor] = {}
        self._handles = [layer.register_forward_hook(self._keeper(role)) for role, layer in layers.items()]

    def _keeper(self, role: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if self.open:
                self._features[role] = output

        return keep

    def take(self) -> dict[str, Tensor]:
        """Hand over what was heard in the last forward pass, by role, and forget it."""
        features, self._features = self._features, {}
        return features

    def remove(self) -> None:
        """Take the hooks off; the layers are as they were."""
        for handle in self._handles:
            handle.remove()
        self._features = {}
