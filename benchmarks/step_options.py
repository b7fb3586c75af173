"""Which options make the training step of a small student faster on a CPU, measured in pairs.

    python benchmarks/step_options.py model=yolo26n-w125.yaml imgsz=192 batch=16 json=step.json

One student takes training steps (forward, detection loss, backward) on one thread: as Ultralytics does it, with its
weights and images in channels-last order, under autocast to bfloat16, and with `compile=true` compiled, which takes
minutes before its first step. The kinds take turns; ratios are medians over these pairs of processor times. Each kind
takes two steps before the clock starts; how long the first takes is printed too. The losses' deviation from the first
kind is that of one step from equal weights.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg

from yolo_mkd import host, report
from yolo_mkd.settings import parse

BOXES = 6  # objects in an image


class Kind:
    """A student and the way in which it takes a step."""

    def __init__(self, student: Any, layout: torch.memory_format, half: bool, compiled: bool):
        self.student = copy.deepcopy(student).to(memory_format=layout)
        self.layout, self.half = layout, half
        self.loss: Any = self.student.init_criterion()
        self.run: Callable[[Tensor], Any] = torch.compile(self.student) if compiled else self.student

    def step(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        """Take a step without an update: processor time [s], and the loss."""
        precision: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext()
        start = time.process_time()
        with precision:
            predicted = self.run(batch["img"].contiguous(memory_format=self.layout))
            loss = self.loss(predicted, batch)[0].sum()
        loss.backward()
        self.student.zero_grad()
        return time.process_time() - start, float(loss)


def batch_of(images: int, imgsz: int, classes: int) -> dict[str, Tensor]:
    """Random images with random boxes, in Ultralytics' form."""
    torch.manual_seed(0)
    count = images * BOXES
    boxes = torch.cat([0.3 + 0.4 * torch.rand(count, 2), 0.1 + 0.3 * torch.rand(count, 2)], 1)
    index = torch.arange(count, dtype=torch.float32) // BOXES
    labels = torch.randint(classes, (count, 1)).float()
    return {"img": torch.rand(images, 3, imgsz, imgsz), "batch_idx": index, "cls": labels, "bboxes": boxes}


def kinds_of(student: nn.Module, compiled: bool) -> dict[str, Callable[[], Kind]]:
    """How each kind is made, by name."""
    usual, last = torch.contiguous_format, torch.channels_last
    kinds = {
        "as it is": lambda: Kind(student, usual, False, False),
        "channels-last": lambda: Kind(student, last, False, False),
        "bfloat16": lambda: Kind(student, usual, True, False),
        "channels-last, bfloat16": lambda: Kind(student, last, True, False),
    }
    return {**kinds, "torch.compile": lambda: Kind(student, usual, False, True)} if compiled else kinds


def measure(student: nn.Module, batch: dict[str, Tensor], rounds: int, compiled: bool) -> dict[str, dict[str, Any]]:
    """The ratio of each kind to the first, and what its first step costs."""
    kinds, first, refused = {}, {}, {}
    for name, make in kinds_of(student, compiled).items():
        kind, start = make(), time.perf_counter()
        try:
            first[name] = kind.step(batch)[1], time.perf_counter() - start
        except (RuntimeError, OSError, ImportError) as error:  # torch.compile without a compiler
            refused[name] = host.one_line(error)[:120]
            continue
        kind.step(batch)
        kinds[name] = kind
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(rounds):
        for name in list(kinds) if i % 2 else reversed(kinds):
            times[name].append(kinds[name].step(batch)[0])
    usual = times["as it is"]
    found: dict[str, dict[str, Any]] = {name: {"refused": why} for name, why in refused.items()}
    for name, own in times.items():
        ratio = statistics.median(a / b for a, b in zip(own, usual, strict=True))
        deviation = first[name][0] / first["as it is"][0] - 1
        found[name] = {"ratio": ratio, "loss": deviation, "first_step_s": first[name][1], "steps_s": own}
    return found


def main(words: Sequence[str]) -> None:
    """Measure, print the table, and write the report named by json=."""
    given = {"model": "yolo26n-w125.yaml", "imgsz": 192, "batch": 16, "classes": 6, "rounds": 9}
    given |= {"compile": False, **parse(words)}
    torch.set_num_threads(1)
    student: Any = host.build(host.find_model("model", given["model"]), classes=given["classes"]).train()
    student.args = get_cfg()
    found = measure(
        student, batch_of(given["batch"], given["imgsz"], given["classes"]), given["rounds"], given["compile"]
    )
    rows = [
        [name, f"{f['ratio']:.2f}", f"{f['loss']:+.2%}", f"{f['first_step_s']:.1f}"]
        if "ratio" in f
        else [name, f"cannot be measured: {f['refused']}", "", ""]
        for name, f in found.items()
    ]
    print(report.table(rows, ["step", "x as it is", "loss differs by", "first step s"], markdown=True))
    if "json" in given:
        command = " ".join(["python benchmarks/step_options.py", *words])
        report.write(Path(given["json"]), "step-options", {"command": command, **given, "kinds": found})


if __name__ == "__main__":
    main(sys.argv[1:])
