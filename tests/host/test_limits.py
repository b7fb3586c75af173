"""Devices that cannot be used are refused before training."""

from __future__ import annotations

import importlib.util

import pytest

from yolo_mkd.host import limits
from yolo_mkd.settings import BadInput


def test_several_gpus_need_a_package_that_is_not_installed_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"device=0,1 needs the package cloudpickle.*: pip install cloudpickle"):
        limits.check_device("0,1")
    limits.check_device("1")  # one GPU is trained on in this process
    monkeypatch.setattr(limits, "LOCAL_RANK", 0)
    limits.check_device("0,1")  # torchrun has started the processes
