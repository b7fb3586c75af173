"""yolo-mkd: multi-strategy knowledge distillation for Ultralytics YOLO.

After *Integrating Knowledge Distillation of Multiple Strategies* (M-KD, Min Jindong and Wang Mingxia), of which only
the abstract is public: an implementation of its named ingredients, not a reproduction. Importing this imports no torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

__version__ = metadata.version("yolo-mkd")

HOMES = {
    "MKD": "chain",
    "MKDTrainer": "trainer",
    "plan": "evidence.plan",
    "cost": "evidence.cost",
    "compare": "evidence.compare",
    "ablate": "evidence.compare",
    "export": "deploy.export",
    "check": "deploy.check",
    "time": "deploy.time",
    "bundle": "deploy.bundle",
    "pareto": "deploy.pareto",
    "write_page": "evidence.page",
    "BadInput": "settings",
}
__all__ = [
    "MKD",
    "BadInput",
    "MKDTrainer",
    "__version__",
    "ablate",
    "bundle",
    "check",
    "compare",
    "cost",
    "export",
    "pareto",
    "plan",
    "time",
    "write_page",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module 'yolo_mkd' has no attribute '{name}'")
    return getattr(importlib.import_module(f"yolo_mkd.{HOMES[name]}"), name)
