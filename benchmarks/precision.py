"""What does a live teacher in half precision change? Its words, and what they ask of the student, beside float32's.

    python benchmarks/precision.py data=bccd.yaml model=yolo26n-w125.yaml teacher=teacher.pt imgsz=160 json=bccd.json

On `batches=` batches of `data=`, augmented as in training, the same teacher speaks in both precisions, in turns: the
losses of all terms, their gradients on the student, and the time that it takes. On a processor that is bfloat16, with
`device=0` float16.
"""

from __future__ import annotations

import json
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
from yolo_mkd.evidence.compare.tables import piped
from yolo_mkd.host.dry import dry_run, silent
from yolo_mkd.knowledge import Knowledge
from yolo_mkd.settings import parse

HALF = {"cpu": torch.bfloat16, "cuda": torch.float16}


def gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What a loss asks of some weights, in one row."""
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def heard(teacher: LiveTeacher, exact: Mapping[str, Tensor], images: Tensor) -> tuple[list[Knowledge], list[float]]:
    """What a teacher says in each precision, and the time that it takes [s]: of the processor, or of the card."""
    words, took = [], []
    for precision in (torch.float32, HALF[images.device.type]):
        teacher.model.to(precision).load_state_dict(exact)  # rounded, where there is something to round
        teacher.infer(images)  # the first pass sets buffers up
        start = now(images.device)
        words.append(teacher.infer(images))
        took.append(now(images.device) - start)
    return words, took


def now(device: torch.device) -> float:
    """The time that this process has had, or on a card the time once its work is done [s]."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measured(trainer: Any, batches: int) -> dict[str, Any]:
    """All terms' losses and gradients by both precisions' words, batch by batch."""
    student = host.unwrap_model(trainer.model)
    criterion, [source] = student.criterion, trainer.sources
    weights = host.shared_weights(student, trainer.spec)
    exact = {name: t.clone() for name, t in source.teacher.model.state_dict().items()}
    terms: dict[str, list[dict[str, float]]] = {}
    times = []
    for _, given in zip(range(batches), trainer.train_loader, strict=False):
        batch = trainer.preprocess_batch(given)
        said = criterion.student.knowledge(student.predict(batch["img"]))
        words, took = heard(source.teacher, exact, batch["img"])
        times.append(took[1] / took[0])
        full, half = (source.lesson.losses(said, w, criterion.truth(batch, source, words[0])) for w in words)
        for name in full:
            ours, theirs = gradient(half[name], weights), gradient(full[name], weights)
            cosine = float(torch.cosine_similarity(ours, theirs, 0))
            terms.setdefault(name, []).append({"loss": float(half[name] / full[name]) - 1, "cosine": cosine})
    return {"terms": terms, "time_ratio": statistics.median(times)}


def table(terms: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The worst batch of each term."""
    rows = [["term", "loss, largest change", "gradient, smallest cosine"]]
    for name, found in terms.items():
        rows.append([name, f"{max(abs(f['loss']) for f in found):.1%}", f"{min(f['cosine'] for f in found):.4f}"])
    return "\n".join(piped(rows))


def main(words: Sequence[str]) -> None:
    """Measure, print the table, and write json=."""
    given = {"imgsz": 160, "batch": 16, "batches": 6, "device": "cpu", "json": "precision.json", **parse(words)}
    found: dict[str, Any] = {}

    def work(trainer: Any) -> None:
        found.update(measured(trainer, given["batches"]))
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
    document = json.loads(file.read_text(encoding="utf-8"))
    print(
        f"{table(found['terms'])}\n\nA forward pass in half precision takes {document['time_ratio']:.2f} x float32's."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
