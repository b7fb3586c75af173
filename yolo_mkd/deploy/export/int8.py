"""INT8 as an ONNX file with Q/DQ pairs, calibrated on training images: the form that every TensorRT supports.

Ultralytics' own quantize=8 calibrates on the val split, which mAP is measured on, with one scale per tensor and
asymmetric activations, which TensorRT rejects, and it quantises the head's last convolutions.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from yolo_mkd import report
from yolo_mkd.deploy.export.graph import WEIGHTED, decode_nodes
from yolo_mkd.deploy.images import read_image, split_images
from yolo_mkd.settings import BadInput

FEWEST = 8  # our choice: fewer images do not give a reliable range of values


class CalibrationFacts(TypedDict):
    """The calibration, for the report and the file's metadata."""

    split: str
    images: int
    of: int  # images of the train split
    left_out: int  # val or test images that the train split contains too
    seed: int
    list_sha256: str  # of the chosen images' names and hashes
    method: str


class CalibrationReader:
    """Provides letterboxed images to ONNX Runtime's calibration, one at a time."""

    def __init__(self, pictures: Sequence[Path], imgsz: tuple[int, int], name: str):
        self.name, self.tensors = name, letterboxed_tensors(pictures, imgsz)

    def get_next(self) -> dict[str, Any] | None:
        """The next input, or None at the end."""
        tensor = next(self.tensors, None)
        return None if tensor is None else {self.name: tensor}


def letterboxed_tensors(pictures: Sequence[Path], imgsz: tuple[int, int]) -> Iterator[Any]:
    """Images as the network's inputs in predict: 1 3 H W float32, RGB in 0..1."""
    import numpy as np

    from yolo_mkd.host.scoring import letterbox

    for picture in pictures:
        planes = letterbox(read_image(picture), imgsz)[..., ::-1].transpose(2, 0, 1)[None]
        yield np.ascontiguousarray(planes, dtype=np.float32) / np.float32(255)


def calibration_images(data: str, count: int, seed: int) -> tuple[list[Path], CalibrationFacts]:
    """Choose training images for calibration, without those that are val or test images too, by path or by bytes.

    Args:
        data: the data set's YAML.
        count: how many, at most.
        seed: for the choice.

    Returns:
        The images, and the facts for the report.

    Raises:
        BadInput: too few images of the train split are left.
    """
    train = split_images("data", data, "train")
    held_back = [p for split in ("val", "test") for p in split_images("data", data, split)]
    places = {p.resolve() for p in held_back}
    sizes: dict[int, list[Path]] = {}
    for picture in held_back:
        sizes.setdefault(picture.stat().st_size, []).append(picture)
    chosen: list[Path] = []
    left_out = 0
    for picture in random.Random(seed).sample(sorted(train), len(train)):
        twins = sizes.get(picture.stat().st_size, [])
        if picture.resolve() in places or (twins and report.sha256(picture) in map(report.sha256, twins)):
            left_out += 1
        elif len(chosen) < count:
            chosen.append(picture)
    if len(chosen) < FEWEST:
        raise BadInput(
            f"data={data} has {len(chosen)} training images for INT8 calibration ({left_out} more are val or test "
            f"images too): give a data set with at least {FEWEST} that are only in its train split"
        )
    listed = "\n".join(f"{report.sha256(p)}  {p.name}" for p in chosen)
    return chosen, {
        "split": "train",
        "images": len(chosen),
        "of": len(train),
        "left_out": left_out,
        "seed": seed,
        "list_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "method": "minmax, symmetric, weights per channel; last convolutions and decode in float",
    }


def quantise_to_int8(
    source: Path,
    target: Path,
    pictures: Sequence[Path],
    imgsz: tuple[int, int],
    int8_weights: bool = True,
    nodes: Sequence[str] | None = None,
) -> None:
    """Write an INT8 copy of a float ONNX file, with Q/DQ pairs around its weighted operators except the head's last.

    Args:
        source: the float file.
        target: the file to write.
        pictures: the images to calibrate on.
        imgsz: height and width [pixels].
        int8_weights: store weights as INT8; otherwise as float with a Q/DQ pair, which TensorRT before 10 needs.
        nodes: quantise only these operators; by default all of `quantisable_nodes`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(source).graph
    last, decode = decode_nodes(graph)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime recommends its own preprocessing at every call
    try:
        quantize_static(
            source,
            target,
            CalibrationReader(pictures, imgsz, graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=None if nodes is None else list(nodes),
            nodes_to_exclude=sorted(last | decode),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={  # as TensorRT requires: no zero points, no INT32 bias
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": not int8_weights,
            },
        )
    finally:
        logging.getLogger().setLevel(level)


def quantisable_nodes(source: Path) -> list[str]:
    """Names of the operators that `quantise_to_int8` quantises by default."""
    import onnx

    graph = onnx.load(source).graph
    last, decode = decode_nodes(graph)
    return [n.name for n in graph.node if n.op_type in WEIGHTED and n.name not in last | decode]
