"""The loss of mAP that each block of a network has in INT8: each is quantised alone, and mAP is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import yaml

from yolo_mkd import report
from yolo_mkd.deploy.check.accuracy import measure_map
from yolo_mkd.deploy.export.graph import block_index, write_metadata
from yolo_mkd.deploy.export.int8 import quantisable_nodes, quantise_to_int8
from yolo_mkd.deploy.images import evenly_spaced, split_images


class BlockSensitivity(TypedDict):
    """The mAP with one block in INT8."""

    block: int
    kind: str  # the class of the block, such as C3k2
    operators: int
    map50_95: float
    change: float  # from the float file's


class Sensitivity(TypedDict):
    """The mAP with each block in INT8 alone, the largest loss first."""

    images: int
    map50_95: float  # of the float file
    blocks: list[BlockSensitivity]


def measure_sensitivity(
    source: Path,
    pictures: Sequence[Path],
    imgsz: tuple[int, int],
    data: str,
    kinds: dict[int, str],
    count: int | None = None,
    single_cls: bool = False,
) -> Sensitivity:
    """Quantise one block at a time and measure the change of mAP50-95.

    Args:
        source: the float ONNX file.
        pictures: the images to calibrate on.
        imgsz: height and width [pixels].
        data: the data set to measure on.
        kinds: the class of each block, by its index.
        count: measure on this many evenly spaced val images; by default on all.
        single_cls: count all classes of the data as one, for a model that was trained so.
    """
    groups: dict[int, list[str]] = {}
    for name in quantisable_nodes(source):
        if (index := block_index(name)) is not None:
            groups.setdefault(index, []).append(name)
    rows: list[BlockSensitivity] = []
    with tempfile.TemporaryDirectory() as folder:
        data = val_subset(data, count, Path(folder)) if count else data
        scores = measure_map(source, data, single_cls=single_cls)
        before = scores.map50_95
        quantised = Path(folder) / source.name
        for index, nodes in sorted(groups.items()):
            kind = kinds.get(index, "")
            print(f"block {index:<4}{kind}, {len(nodes)} operators in INT8")
            quantise_to_int8(source, quantised, pictures, imgsz, nodes=nodes)
            write_metadata(quantised, {"precision": "int8"})
            after = measure_map(quantised, data, single_cls=single_cls).map50_95
            change = after - before
            rows.append({"block": index, "kind": kind, "operators": len(nodes), "map50_95": after, "change": change})
    return {"images": len(scores.images), "map50_95": before, "blocks": sorted(rows, key=lambda row: row["change"])}


def val_subset(data: str, count: int, folder: Path) -> str:
    """Write the YAML of a data set whose val split is `count` images of another data set's; no image is copied."""
    from yolo_mkd import host

    chosen = evenly_spaced(split_images("data", data, "val"), count)
    (folder / "val.txt").write_text("\n".join(str(p.resolve()) for p in chosen), encoding="utf-8")
    file = folder / "data.yaml"
    names = dict(host.check_data(data, fetch=False)["names"])
    paths = {"path": str(folder), "train": "val.txt", "val": "val.txt"}
    file.write_text(yaml.safe_dump({**paths, "names": names}), encoding="utf-8")
    return str(file)


def sensitivity_text(found: Sensitivity) -> str:
    """The measured blocks as a text table, the largest loss first."""
    rows = [
        [row["block"], row["kind"], row["operators"], f"{row['map50_95']:.4f}", f"{row['change']:+.4f}"]
        for row in found["blocks"]
    ]
    title = f"INT8, one block at a time; in float mAP50-95 is {found['map50_95']:.4f} on {found['images']} images"
    return f"{title}\n{report.table(rows, ['block', 'kind', 'operators', 'mAP50-95', 'change'])}"
