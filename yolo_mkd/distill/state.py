"""The state of a distilled run that a resumed one needs, beside Ultralytics' checkpoints: adapters and loss weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolo_mkd import host, report
from yolo_mkd.distill.distiller import Distiller
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput


class RunState:
    """Saves and restores adapters, their part of the optimizer, and loss weights.

    The checkpoints hold the student's part of the optimizer alone, so that stock Ultralytics can resume them.
    """

    def __init__(self, distillers: list[Distiller], adapters: nn.ModuleList):
        """Take what is to be saved.

        Args:
            distillers: one for each teacher.
            adapters: their adapters, in the same order.
        """
        self.distillers, self.adapters = distillers, adapters
        self.weights = list(adapters.parameters())

    def save(self, file: Path, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Write the state, whole or not at all; the keys are the file's contract.

        Args:
            file: mkd.pt in the run's folder of weights.
            optimizer: of student and adapters.
            epoch: that has ended, from 0.
        """
        state = {
            "epoch": epoch,
            "parts": self.adapters.state_dict(),
            "optimizer": host.adapter_states(optimizer, self.weights),
            "balance": [d.balancer.state() for d in self.distillers],
        }
        with report.atomic(file) as partial:
            torch.save(state, partial)

    @contextmanager
    def student_optimizer(self, trainer: Any) -> Iterator[None]:
        """Let a trainer see an optimizer of the student alone while it saves a checkpoint."""
        whole = trainer.optimizer
        if self.weights:
            trainer.optimizer = host.student_only(whole, {id(p) for p in self.weights})
        try:
            yield
        finally:
            trainer.optimizer = whole

    def with_adapters(self, ckpt: dict[str, Any], file: Path, trainer: Any) -> dict[str, Any]:
        """A checkpoint whose optimizer state holds the adapters' part again.

        Args:
            ckpt: Ultralytics' checkpoint.
            file: mkd.pt.
            trainer: an Ultralytics trainer with its optimizer built.

        Raises:
            BadInput: the file is damaged.
        """
        if not self.weights or ckpt.get("optimizer") is None:
            return ckpt
        states = contents(file, trainer.device).get("optimizer", [])
        return {**ckpt, "optimizer": host.merged(trainer.optimizer, ckpt["optimizer"], self.weights, states)}

    def load(self, file: Path, device: torch.device) -> None:
        """Restore adapters and loss weights, or warn that they begin anew where there is no file.

        Raises:
            BadInput: the file is damaged, of other terms, or holds a gain that is not a finite number.
        """
        state = contents(file, device)
        if not state:
            LOGGER.warning(f"M-KD: {file} not found: adapters and loss weights are initialised again")
            return
        try:
            self.adapters.load_state_dict(state["parts"])
            for distiller, balance in zip(self.distillers, state["balance"], strict=True):
                distiller.balancer.restore(balance)
        except host.UNREADABLE as error:
            raise damaged(file, error) from error


def contents(file: Path, device: torch.device) -> dict[str, Any]:
    """The contents of a state file; empty where there is none.

    Raises:
        BadInput: it is damaged.
    """
    if not file.exists():
        return {}
    try:
        return dict(torch.load(file, map_location=device, weights_only=True))
    except host.UNREADABLE as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: BaseException) -> BadInput:
    """The refusal of a state file that cannot be restored."""
    cause = host.one_line(error)[:160]
    return BadInput(
        f"{file} is damaged or of other terms ({cause}): restore the file, or delete it to begin with new adapters "
        "and gains"
    )
