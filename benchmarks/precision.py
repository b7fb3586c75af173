"""What does a teacher in half precision change? Its outputs, and the gradients they give the student, against float32.

    python benchmarks/precision.py data=bccd.yaml model=yolo26n-w125.yaml teacher=teacher.pt imgsz=160 json=bccd.json

On `batches=` batches of `data=`, augmented as in training, the same teacher runs in both precisions: the losses of all
terms, their gradients on the student, and the teacher's time are compared. Half precision is bfloat16 on a CPU, and
float16 with `device=0`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolo_mkd import MKDTrainer, host, report
from yolo_mkd.distill.teachers import LiveTeacher
from yolo_mkd.host.dry import dry_run, silent
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import parse

HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}


def gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient of a loss with respect to some weights, flattened."""
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def infer_both(
    teacher: LiveTeacher, exact: Mapping[str, Tensor], images: Tensor
) -> tuple[list[Knowledge], list[float]]:
    """A teacher's outputs in float32 and in half precision, and the time of each [s], processor time on a CPU."""
    outputs, seconds = [], []
    for precision in (torch.float32, HALF[images.device.type]):
        teacher.model.to(precision).load_state_dict(exact)  # rounded to the precision
        teacher.infer(images)  # the first pass allocates buffers
        start = now(images.device)
        outputs.append(teacher.infer(images))
        seconds.append(now(images.device) - start)
    return outputs, seconds


def now(device: torch.device) -> float:
    """The processor time of this process; on a GPU, the clock once its work is done [s]."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_batches(trainer: Any, batches: int) -> dict[str, Any]:
    """The losses and gradients of all terms with the teacher in both precisions, for each batch."""
    student = host.unwrap_model(trainer.model)
    criterion, [distiller] = trainer.kd.criterion, trainer.kd.distillers
    weights = host.shared_weights(student, trainer.kd.spec)
    exact = {name: t.clone() for name, t in distiller.teacher.model.state_dict().items()}
    terms: dict[str, list[dict[str, float]]] = {}
    times = []
    for _, given in zip(range(batches), trainer.train_loader, strict=False):
        batch = trainer.preprocess_batch(given)
        ours = criterion.student.collect(student.predict(batch["img"]))
        outputs, seconds = infer_both(distiller.teacher, exact, batch["img"])
        times.append(seconds[1] / seconds[0])
        labels = criterion.weigh(distiller, outputs[0], batch)
        full, half = (distiller.losses(ours, theirs, *labels) for theirs in outputs)
        for name in full:
            rounded, exact_gradient = gradient(half[name], weights), gradient(full[name], weights)
            cosine = float(torch.cosine_similarity(rounded, exact_gradient, 0))
            terms.setdefault(name, []).append({"loss": float(half[name] / full[name]) - 1, "cosine": cosine})
    return {"terms": terms, "time_ratio": statistics.median(times)}


def term_table(terms: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The largest deviations of each term, in Markdown."""
    headers, rows = ["term", "loss, largest change", "gradient, smallest cosine"], []
    for name, found in terms.items():
        rows.append([name, f"{max(abs(f['loss']) for f in found):.1%}", f"{min(f['cosine'] for f in found):.4f}"])
    return report.table(rows, headers, markdown=True)


def main(words: Sequence[str]) -> None:
    """Measure, print the table, and write the report named by json=."""
    given = {"imgsz": 160, "batch": 16, "batches": 6, "device": "cpu", "json": "precision.json", **parse(words)}
    found: dict[str, Any] = {}

    def work(trainer: Any) -> None:
        found.update(measure_batches(trainer, given["batches"]))
        trainer.epoch = 0
        trainer.save_model()

    with tempfile.TemporaryDirectory() as folder, silent():
        arguments = {k: given[k] for k in ("data", "imgsz", "batch")}
        arguments |= {"device": given["device"], "epochs": 20, "workers": 0, "plots": False}
        arguments["amp"] = False  # the teacher's precision is set here
        trainer = MKDTrainer.using(teacher=host.find_model("teacher", given["teacher"]))
        dry_run(trainer, host.find_model("model", given["model"]), {**arguments, "project": folder}, work)
    command = " ".join(["python benchmarks/precision.py", *words])
    file = report.write(Path(given["json"]), "precision", {"command": command, **found})
    print(term_table(found["terms"]))
    print(f"\nA forward pass in half precision takes {found['time_ratio']:.2f} x that of float32; written to {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
