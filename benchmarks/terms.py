"""What each distillation term costs: processor time and memory of its forward and backward pass, against a checkout.

    python benchmarks/terms.py imgsz=640 batch=4 against=../yolo-mkd-before json=terms-640.json

Random images pass once through student and teacher; each term is then computed on their outputs again and again.
Bytes are those that torch allocates, so they do not depend on the load of the machine: `kept` is what the backward
pass needs beside the models' own outputs, `peak` the most at any time. With `against=`, a second process runs the code
of another checkout, the two take turns, and ratios are medians over these pairs. The last rows are all terms together
and the student's own forward and backward pass.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from yolo_mkd import host, report
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.knowledge import Knowledge, LossWeights, Outputs, Targets
from yolo_mkd.settings import defaults, parse

SHOWN = ("time", "kept", "peak")


class Pair:
    """A student, its teacher and their outputs for random images.

    Attributes:
        student: untrained.
        images: of a batch, B 3 H W.
        distiller: with the default terms.
        given: the student's outputs.
        teacher: the teacher's.
    """

    def __init__(self, model: str, teacher: str, imgsz: int, batch: int, classes: int):
        torch.manual_seed(0)
        self.student = host.build(model, classes=classes).train()
        frozen = host.freeze(host.build(teacher, classes=classes))
        specs = [host.model_spec(m, imgsz) for m in (self.student, frozen)]
        self.distiller = Distiller(*specs, {n: defaults()[n] for n in TERMS}, False, False, 1.0)
        live = LiveTeacher("teacher", frozen.to(torch.bfloat16), specs[1], self.distiller.roles)
        extractor = FeatureExtractor(self.student, specs[0], self.distiller.roles)
        self.images = torch.rand(batch, 3, imgsz, imgsz)
        with torch.no_grad():
            self.given = extractor.collect(self.student(self.images))
        extractor.hooks.remove()
        self.teacher = live.infer(self.images)
        weights = {b: torch.rand(classes) + 0.5 for b in self.distiller.match.branches}
        self.classes = weights
        self.targets = Targets(torch.rand(4 * batch, 4), torch.arange(4 * batch) // 4)

    def outputs(self) -> Knowledge:
        """The student's outputs as leaves of a new graph, in their own memory layout."""
        branches = {n: Outputs(leaf(o.logits), leaf(o.distances)) for n, o in self.given.branches.items()}
        return Knowledge(branches, {r: leaf(f) for r, f in self.given.features.items()}, self.given.levels)

    def weights(self) -> LossWeights:
        """The loss weights of a new batch, as the criterion makes them."""
        found = LossWeights(branches={b: 0.5 for b in self.classes}, classes=self.classes)
        if hasattr(found, "part"):  # the class loss of another checkout may compute all anchors
            found.part = 0
        return found

    def parts(self) -> dict[str, Callable[[Knowledge], Tensor]]:
        """What is measured, as functions of the student's outputs: each term, all together, the student itself."""

        def together(ks: Knowledge) -> Tensor:
            losses = self.distiller.losses(ks, self.teacher, self.targets, self.weights())
            return torch.stack(list(losses.values())).sum()

        def step(ks: Knowledge) -> Tensor:
            raw = self.student(self.images)
            return torch.stack([x.square().mean() for x in tensors(raw)]).sum()

        def single(loss: Any) -> Callable[[Knowledge], Tensor]:
            return lambda ks: loss(ks, self.teacher, self.targets, self.weights())

        terms = {t.name: single(t.loss) for t in self.distiller.acting}
        return {**terms, "together": together, "student": step}


def leaf(x: Tensor) -> Tensor:
    """A copy that gradients can be taken by."""
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def tensors(raw: Any) -> Iterable[Tensor]:
    """All tensors in nested outputs."""
    if isinstance(raw, Tensor):
        yield raw
    for part in raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list | tuple) else ():
        yield from tensors(part)


def measure_time(pair: Pair) -> dict[str, float]:
    """The processor time of each part, forward and backward [s]."""
    found = {}
    for name, part in pair.parts().items():
        ks = pair.outputs()
        start = time.process_time()
        part(ks).backward()  # type: ignore[no-untyped-call]
        found[name] = time.process_time() - start
    return found


def measure_memory(pair: Pair) -> dict[str, dict[str, int]]:
    """The bytes of each part after its forward pass, and at most, beside the student's outputs."""
    found = {}
    for name, part in pair.parts().items():
        ks = pair.outputs()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
            loss = part(ks)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
            loss.backward()  # type: ignore[no-untyped-call]
        levels = running(forward)
        found[name] = {"kept": levels[-1], "peak": max(max(levels), levels[-1] + max(running(backward)))}
        del loss  # so that the next profile does not see its graph go
    return found


def running(recorded: Any) -> list[int]:
    """The bytes allocated since the beginning of a profile, after each allocation and release."""
    total, levels = 0, [0]
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        levels.append(total)
    return levels


def work(given: dict[str, Any]) -> None:
    """Measure once for each line of standard input, and print the result as a line."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the profiler prints is no result
    pair = Pair(*(given[k] for k in ("model", "teacher", "imgsz", "batch", "classes")))
    memory = measure_memory(pair)
    measure_time(pair)  # the first pass allocates buffers
    for _ in sys.stdin:
        print(json.dumps({"time": measure_time(pair), "memory": memory}), file=answers, flush=True)


def start(given: dict[str, Any], checkout: Path) -> subprocess.Popen[str]:
    """A process that measures the code of a checkout."""
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "worker=true", *(f"{k}={v}" for k, v in given.items())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def take_turns(given: dict[str, Any], checkouts: Sequence[Path], rounds: int) -> list[list[dict[str, Any]]]:
    """The results of each checkout's process, which measure one after the other, in each round in another order."""
    workers = [start(given, c) for c in checkouts]
    found: list[list[dict[str, Any]]] = [[] for _ in workers]
    for i in range(rounds):
        for which in sorted(range(len(workers)), reverse=bool(i % 2)):
            pipe = workers[which]
            assert pipe.stdin is not None and pipe.stdout is not None
            print("measure", file=pipe.stdin, flush=True)
            found[which].append(json.loads(pipe.stdout.readline()))
    for worker in workers:
        worker.communicate()
    return found


def conclude(found: Sequence[Sequence[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """By part: milliseconds and bytes of this code and, where there is another checkout, the ratios to it."""
    rows = {}
    for part in found[0][0]["time"]:
        row: dict[str, float] = {"time": 1e3 * statistics.median(r["time"][part] for r in found[0])}
        row |= found[0][0]["memory"][part]
        if len(found) > 1:
            pairs = [a["time"][part] / b["time"][part] for a, b in zip(*found, strict=True)]
            row["time_ratio"] = statistics.median(pairs)
            for figure in SHOWN[1:]:
                row[f"{figure}_before"] = found[1][0]["memory"][part][figure]
        rows[part] = row
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """The figures in Markdown."""
    headers = ["part", "ms", "x before", "kept MB", "before", "peak MB", "before"]
    cells = []
    for part, row in rows.items():
        memory = [f"{row[k] / 2**20:.1f}" if k in row else "" for k in ("kept", "kept_before", "peak", "peak_before")]
        ratio = f"{row['time_ratio']:.2f}" if "time_ratio" in row else ""
        cells.append([part, f"{row['time']:.1f}", ratio, *memory])
    return report.table(cells, headers, markdown=True)


def main(words: Sequence[str]) -> None:
    """Measure, print the table, and write the report named by json=."""
    given = {"model": "yolo26n.yaml", "teacher": "yolo26s.yaml", "imgsz": 320, "batch": 8, "classes": 80, "rounds": 9}
    given |= parse(words)
    if given.pop("worker", False):
        work(given)
        return
    file, against, rounds = given.pop("json", None), given.pop("against", None), given.pop("rounds")
    checkouts = [Path(__file__).parents[1], *([Path(against)] if against else [])]
    rows = conclude(take_turns(given, checkouts, rounds))
    print(table(rows))
    if file:
        command = " ".join(["python benchmarks/terms.py", *words])
        report.write(Path(file), "terms", {"command": command, "rounds": rounds, **given, "parts": rows})


if __name__ == "__main__":
    main(sys.argv[1:])
