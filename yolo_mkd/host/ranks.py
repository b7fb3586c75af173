"""Ranks that torchrun started: over several machines, and on CPUs, neither of which Ultralytics trains on.

Ultralytics counts the devices in `device=` as the ranks of a run, so that those of other machines are missing, and
takes every rank for a GPU's. Here the number of ranks is torchrun's, and ranks on CPUs are joined by gloo.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed, nn
from ultralytics.engine import validator
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import LOCAL_RANK, RANK, WORLD_SIZE

from yolo_mkd.settings import BadInput

TIMEOUT = timedelta(hours=3)  # Ultralytics' own
SHARED_WITHIN = 60  # seconds until a network file system shows a new folder on every machine


class Ranked:
    """To be put before an Ultralytics trainer: trains on all ranks that torchrun started."""

    args: Any
    device: torch.device
    save_dir: Path

    def __init__(self, *args: Any, **kwargs: Any):
        """As the trainer."""
        super().__init__(*args, **kwargs)
        if LOCAL_RANK != -1:
            self.world_size = WORLD_SIZE

    @property
    def on_cpu_ranks(self) -> bool:
        """Whether this is one of several ranks on CPUs."""
        return self.device.type == "cpu" and RANK != -1

    def _setup_ddp(self) -> None:
        if self.on_cpu_ranks:
            distributed.init_process_group("gloo", timeout=TIMEOUT, rank=RANK, world_size=self.world_size)
        else:
            super()._setup_ddp()  # type: ignore[misc]
        self._share_folder()

    def _share_folder(self) -> None:
        """Use the first rank's run folder.

        Raises:
            BadInput: another machine does not have it.
        """
        named = [str(self.save_dir)]
        distributed.broadcast_object_list(named, 0)
        self.save_dir = Path(named[0])
        self.wdir = self.save_dir / "weights"
        self.last, self.best, self.csv = self.wdir / "last.pt", self.wdir / "best.pt", self.save_dir / "results.csv"
        began = time.monotonic()
        while not self.wdir.is_dir():
            if time.monotonic() - began > SHARED_WITHIN:
                raise BadInput(
                    f"project={self.args.project}: {self.save_dir} is missing on {socket.gethostname()}: "
                    "use a folder that all machines share"
                )
            time.sleep(1)

    def _setup_train(self) -> None:
        with cpu_ranks(self.on_cpu_ranks):
            super()._setup_train()  # type: ignore[misc]

    def final_eval(self) -> None:
        """Evaluate as the trainer does."""
        with cpu_ranks(self.on_cpu_ranks):
            super().final_eval()  # type: ignore[misc]


class CPUParallel(nn.parallel.DistributedDataParallel):
    """DDP for a model on a CPU, which has no index."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **others: Any):
        super().__init__(module, **others)


@contextmanager
def cpu_ranks(on: bool) -> Iterator[None]:
    """Let Ultralytics wrap the model, and validate the finished checkpoint, on CPUs instead of GPUs."""
    if not on:
        yield
        return
    first_gpu = SimpleNamespace(current_device=lambda: 0)
    changes: list[tuple[Any, str, Any]] = [
        (nn.parallel, "DistributedDataParallel", CPUParallel),
        (validator, "get_torch_device_backend", lambda kind: first_gpu),
        (validator, "AutoBackend", lambda device, **others: AutoBackend(device=torch.device("cpu"), **others)),
    ]
    before = [getattr(module, name) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changes, before, strict=True):
            setattr(module, name, value)
