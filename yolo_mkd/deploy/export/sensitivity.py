"""Which block of a network loses how much to INT8: each is quantised alone, and mAP is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from yolo_mkd.deploy.check.accuracy import measure
from yolo_mkd.deploy.export.graph import block, stamp
from yolo_mkd.deploy.export.int8 import quantisable, quantise
from yolo_mkd.deploy.images import split_images, spread


def scan(
    source: Path,
    pictures: Sequence[Path],
    imgsz: tuple[int, int],
    data: str,
    kinds: dict[int, str],
    count: int | None = None,
) -> dict[str, Any]:
    """Quantise one block at a time and measure what mAP50-95 changes by.

    Args:
        source: the float ONNX file.
        pictures: the images to calibrate on.
        imgsz: height and width [pixels].
        data: the data set to measure on.
        kinds: what each block is, by its index.
        count: measure on this many val images, evenly spread; by default on all.

    Returns:
        images, map50_95 of the float file, and `blocks`: block, kind, operators, map50_95, change;
        the largest loss first.
    """
    groups: dict[int, list[str]] = {}
    for name in quantisable(source):
        if (index := block(name)) is not None:
            groups.setdefault(index, []).append(name)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = fewer(data, count, Path(folder)) if count else data
        scores = measure(source, data)
        before = scores.map50_95
        trial = Path(folder) / source.name
        for index, nodes in sorted(groups.items()):
            print(f"block {index:<4}{kinds.get(index, '')}, {len(nodes)} operators in INT8")
            quantise(source, trial, pictures, imgsz, nodes=nodes)
            stamp(trial, {"precision": "int8"})
            after = measure(trial, data).map50_95
            rows.append(
                {
                    "block": index,
                    "kind": kinds.get(index, ""),
                    "operators": len(nodes),
                    "map50_95": after,
                    "change": after - before,
                }
            )
    return {"images": len(scores.images), "map50_95": before, "blocks": sorted(rows, key=lambda row: row["change"])}


def fewer(data: str, count: int, folder: Path) -> str:
    """Write a data set's YAML whose val split is some images of another's, where they are."""
    from yolo_mkd import host

    chosen = spread(split_images("data", data, "val"), count)
    (folder / "val.txt").write_text("\n".join(str(p.resolve()) for p in chosen), encoding="utf-8")
    file = folder / "data.yaml"
    names = dict(host.check_data(data, fetch=False)["names"])
    paths = {"path": str(folder), "train": "val.txt", "val": "val.txt"}
    file.write_text(yaml.safe_dump({**paths, "names": names}), encoding="utf-8")
    return str(file)


def table(found: dict[str, Any]) -> str:
    """Lay a scan out for people, the largest loss first."""
    lines = [f"INT8, one block at a time; in float mAP50-95 is {found['map50_95']:.4f} on {found['images']} images"]
    lines += [f"{'block':>7}  {'kind':<16}{'operators':>9}{'mAP50-95':>10}{'change':>9}"]
    lines += [
        f"{row['block']:>7}  {row['kind']:<16}{row['operators']:>9}{row['map50_95']:>10.4f}{row['change']:>+9.4f}"
        for row in found["blocks"]
    ]
    return "\n".join(lines)
