"""A training on several ranks, as a script that torchrun starts: `train_on_ranks.py '{"student": ...}'`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO

from yolo_mkd.host import CheckpointKeeper, unwrap_model
from yolo_mkd.trainer import MKDTrainer


def main() -> None:
    """Train as the argument says; `kill` is the epoch that a kill interrupts."""
    asked = json.loads(sys.argv[1])
    folder = Path(asked["folder"])
    yolo = YOLO(asked["student"])

    def kill(trainer: Any) -> None:
        if trainer.epoch == asked["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(trainer: Any) -> None:
        """Save what all ranks have to agree on."""
        balances = [d.balancer for d in trainer.kd.distillers]
        agreed = {
            "student": dict(unwrap_model(trainer.model).named_parameters()),
            "adapters": trainer.kd.adapters.state_dict(),
            "gains": [b.gains for b in balances],
            "classes": [b.class_weights() for b in balances],
            "gated": [[name in b.gated for name in b.gains] for b in balances],
        }
        torch.save(agreed, folder / f"rank{os.environ['RANK']}-epoch{trainer.epoch}.pt")

    yolo.add_callback("on_train_batch_end", kill)
    yolo.add_callback("on_train_epoch_end", note)
    CheckpointKeeper(folder).install(yolo)
    yolo.train(trainer=MKDTrainer.using(**asked["using"]), **asked["train"])


if __name__ == "__main__":
    main()
