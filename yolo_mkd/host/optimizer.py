"""An optimizer's state split between the student, whose part stock Ultralytics can resume, and the adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.optim import Optimizer


def student_only(optimizer: Optimizer, adapters: set[int]) -> Any:
    """An object whose `state_dict()` is the optimizer's without the adapters' parameters.

    Args:
        optimizer: of student and adapters.
        adapters: `id` of each adapter parameter.
    """

    def state_dict() -> dict[str, Any]:
        whole = optimizer.state_dict()
        number, groups, state = 0, [], {}
        for group, packed in zip(optimizer.param_groups, whole["param_groups"], strict=True):
            kept = [i for i, p in zip(packed["params"], group["params"], strict=True) if id(p) not in adapters]
            for i in kept:
                if i in whole["state"]:
                    state[number + kept.index(i)] = whole["state"][i]
            groups.append({**packed, "params": list(range(number, number + len(kept)))})
            number += len(kept)
        return {"state": state, "param_groups": groups}

    return SimpleNamespace(state_dict=state_dict)


def adapter_states(optimizer: Optimizer, adapters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The optimizer's state of each adapter parameter, in their order; empty before its first step."""
    return [dict(optimizer.state.get(p, {})) for p in adapters]


def merged(
    optimizer: Optimizer, student: dict[str, Any], adapters: list[nn.Parameter], states: list[dict[str, Any]]
) -> dict[str, Any]:
    """A state for the whole optimizer from the student's part and the adapters'.

    Args:
        optimizer: of student and adapters.
        student: as `student_only` gave it; a state of all parameters, as version 0.1 saved it, is returned as it is.
        adapters: the adapter parameters.
        states: as `adapter_states` gave them; a parameter without one starts anew.
    """
    whole, own = optimizer.state_dict(), {id(p): s for p, s in zip(adapters, states, strict=False)}
    adapter_ids = {id(p) for p in adapters}
    if sum(len(g["params"]) for g in student["param_groups"]) == sum(len(g["params"]) for g in whole["param_groups"]):
        return student
    groups, state = [], {}
    for group, packed, saved in zip(
        optimizer.param_groups, whole["param_groups"], student["param_groups"], strict=True
    ):
        numbers = iter(saved["params"])
        for i, p in zip(packed["params"], group["params"], strict=True):
            found = own.get(id(p)) if id(p) in adapter_ids else student["state"].get(next(numbers))
            if found:
                state[i] = found
        groups.append({**saved, "params": packed["params"]})
    return {"state": state, "param_groups": groups}
