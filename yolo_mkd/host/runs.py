"""Run folders: their location, whether a run can be resumed, and the results in its checkpoint."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ultralytics.cfg import get_save_dir as ultralytics_save_dir
from ultralytics.utils import SETTINGS, TQDM
from ultralytics.utils.torch_utils import get_flops

from yolo_mkd.host.trust import read_checkpoint, read_contents
from yolo_mkd.report import atomic
from yolo_mkd.settings import BadInput

# Ultralytics' arguments that decide which picture a view of an image is, in the order of the cache's header
AUGMENTATION = (
    "mosaic",
    "mixup",
    "cutmix",
    "copy_paste",
    "copy_paste_mode",
    "degrees",
    "translate",
    "scale",
    "shear",
    "perspective",
    "flipud",
    "fliplr",
    "bgr",
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "augmentations",
    "single_cls",
    "classes",
    "fraction",
    "task",
)
METRICS = {
    "map50_95": "mAP50-95(B)",
    "map50": "mAP50(B)",
    "precision": "precision(B)",
    "recall": "recall(B)",
    "mask_map50_95": "mAP50-95(M)",
    "mask_map50": "mAP50(M)",
    "pose_map50_95": "mAP50-95(P)",
    "pose_map50": "mAP50(P)",
}


def run_folder(project: str | None, name: str | None, exist_ok: bool) -> Path:
    """The folder of a new chain by Ultralytics' rules for `project=` and `name=`: runs/mkd/train, train2, ..."""
    args = SimpleNamespace(project=project, name=name, task="mkd", mode="train", exist_ok=exist_ok)
    return Path(ultralytics_save_dir(args))


def newest_chain() -> Path | None:
    """The chain folder most recently written under Ultralytics' runs folder."""
    found = Path(SETTINGS["runs_dir"]).glob("mkd/**/chain.yaml")
    return max((p.parent for p in found), key=lambda p: (p / "chain.yaml").stat().st_mtime, default=None)


def caches_folder() -> Path:
    """The default folder of teacher caches, shared by all chains: runs/mkd/records."""
    return Path(SETTINGS["runs_dir"]) / "mkd" / "records"


def metrics(best: Path) -> dict[str, float]:
    """The accuracy stored in a finished run's checkpoint: for boxes and, if the task has them, masks or keypoints."""
    return named_metrics(read_checkpoint(best)[1]["train_metrics"])


def named_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy in Ultralytics' results of a validation, by our names, without what the task lacks."""
    scores = {ours: found.get(f"metrics/{theirs}") for ours, theirs in METRICS.items()}
    return {name: round(float(score), 5) for name, score in scores.items() if score is not None}


def size(path: Path, imgsz: int) -> dict[str, float]:
    """Parameters and GFLOPs of a trained detector at an image size, counted as Ultralytics prints them."""
    model = read_checkpoint(path)[0]
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflops": round(get_flops(model, imgsz), 3)}


@contextlib.contextmanager
def discarding_empty_run(folder: Path) -> Iterator[None]:
    """Remove a run's folder on BadInput if it contains nothing but its arguments."""
    try:
        yield
    except BadInput:
        with contextlib.suppress(OSError):  # a folder with any other file is kept
            (folder / "weights").rmdir()
            (folder / "args.yaml").unlink(missing_ok=True)
            folder.rmdir()
        raise


def annotate(file: Path, summary: dict[str, Any]) -> None:
    """Add a summary of the distillation to a checkpoint, atomically, under the key `mkd`, which Ultralytics ignores."""
    write_tensors(file, {**read_contents(file), "mkd": summary})


def write_tensors(file: Path, contents: dict[str, Any]) -> None:
    """Write what `torch.load` reads, whole or not at all.

    Raises:
        Failed: the disk is full; `torch.save` on a file would raise a RuntimeError that does not say so.
    """
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with atomic(file) as partial:
        partial.write_bytes(buffer.getbuffer())


def augmentation(args: Any) -> dict[str, Any]:
    """The values of those of Ultralytics' arguments that decide which picture a view of an image is."""
    return {name: getattr(args, name) for name in AUGMENTATION if hasattr(args, name)}


def progress(items: Any, meaning: str) -> Iterable[Any]:
    """The items with Ultralytics' progress bar, shown at any log level."""
    bar: Iterable[Any] = TQDM(items, total=len(items), desc=meaning, disable=False)
    return bar
