"""The demo's two students over several seeds: yolo-mkd compare with exactly the data and arguments of yolo-mkd demo.

python benchmarks/demo.py FOLDER [arguments of yolo-mkd compare, such as parallel=2; seeds=8 by default]

FOLDER gets the images, the weights and the comparison `compare`; a second call resumes it. A second call with
methods=longer adds plain training for as long as distillation costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from yolo_mkd import compare
from yolo_mkd.demo import LABELLED, RATIO, SEED, TRAINING, UNLABELLED, UNLABELLED_SEED, VAL, copy_weights, scenes
from yolo_mkd.settings import parse

FIXED = {"epochs": 50, "seeds": 8, "device": "cpu", "workers": 0}  # epochs: the demo's default


def main(folder: Path, words: list[str]) -> None:
    """Draw the images unless they are there, and compare."""
    given = parse(words)
    place = folder / "compare"
    if (place / "compare.yaml").is_file():
        compare(resume=str(place), **given)
        return
    folder.mkdir(parents=True, exist_ok=True)
    data = scenes.make(folder / "data", LABELLED, VAL, SEED)
    unlabelled = scenes.make_unlabelled(folder / "unlabelled", UNLABELLED, UNLABELLED_SEED)
    starts = copy_weights(folder / "weights")
    methods = f"plain,mkd:unlabelled={unlabelled}:unlabelled_ratio={RATIO}"
    training = {k: v for k, v in TRAINING.items() if k not in {"plots", "verbose"}}
    compare(
        data=str(data), model=str(starts["student"]), teacher=str(starts["teacher"]), assistant="none",
        project=str(folder), name="compare", **{**training, **FIXED, "methods": methods, **given},
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
