"""The measured gain of a training's settings, from a comparison of the same models, data and terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_mkd.chain import Chain
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.card.text import without_folders
from yolo_mkd.evidence.compare.tables import difference_text
from yolo_mkd.evidence.compare.trials import short_labels
from yolo_mkd.evidence.page import read_comparison
from yolo_mkd.settings import KD_OPTIONS, BadInput

NOT_OF_THE_METHOD = {"preset", "record", "views", "record_limit"}  # a preset's values are in the others
ALIKE = (*TERMS, *(name for name in KD_OPTIONS if name not in NOT_OF_THE_METHOD))


def find_intervals(folder: Path, chain: Chain) -> list[list[str]]:
    """The differences of the chain's method from the comparison's references: reference, figure, interval, seeds.

    Args:
        folder: the comparison's.
        chain: the contents of the training's chain.yaml.

    Raises:
        BadInput: there is no comparison, or it is of another teacher, student, data set, length or method.
    """
    if not (folder / "compare.json").is_file():
        raise BadInput(f"compare={folder} holds no compare.json: give the folder of a finished comparison")
    comparison = read_comparison(folder, "compare")
    own = chain["teacher"] or chain["stages"][0]  # a teacher that the chain has trained
    if not comparison["teacher"] or comparison["teacher"]["sha256"] != own["sha256"]:
        raise BadInput(f"compare={folder} is of another teacher: give one with the same file as teacher=")
    epochs = chain["arguments"].get("epochs", 100)
    data, student = (
        next(iter(short_labels("compare", [file])))
        for file in (chain["arguments"]["data"], chain["stages"][-1]["model"])
    )
    labelled = [r for r in comparison["rows"] if (r["data"], r["student"], r.get("epochs")) == (data, student, epochs)]
    rows = [r for r in labelled if is_method(comparison.get("settings", {}).get(r["method"]), chain)]
    if not rows:
        reason = f"no method of these settings with {student} on {data} for {epochs} epochs"
        raise BadInput(f"compare={folder} has {reason}: compare the training's own settings, or leave compare= out")
    return [
        [reference, figure, difference_text(found), str(found["seeds"])]
        for reference, changes in rows[0]["against"].items()
        for figure, key in (("mAP50-95", "map50_95"), ("mAP50-95 without NMS", "nms_free_map50_95"))
        if (found := changes.get(key))
    ]


def is_method(settings: dict[str, Any] | None, chain: Chain) -> bool:
    """Whether a comparison's method has the settings of a chain."""
    if settings is None:
        return False
    ours, theirs = without_folders(chain["knowledge"]), without_folders(settings)
    return all(theirs.get(name) == ours[name] for name in ALIKE if name in ours)
