"""INT8 as an ONNX file with Q/DQ pairs, calibrated on training images; the form that every TensorRT reads.

Ultralytics' own quantize=8 calibrates on the val split, which mAP is measured on, with one scale per tensor and
asymmetric activations, which TensorRT refuses, and it quantises the head's last convolutions.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yolo_mkd.deploy.export.graph import WEIGHTED, decode_nodes
from yolo_mkd.deploy.images import read_image, split_images
from yolo_mkd.settings import BadInput

FEWEST = 8  # ours: fewer images give no range of values


class Letterboxed:
    """Feeds ONNX Runtime's calibration one letterboxed image after the other."""

    def __init__(self, pictures: Sequence[Path], imgsz: tuple[int, int], name: str):
        self.name, self.tensors = name, letterboxed(pictures, imgsz)

    def get_next(self) -> dict[str, Any] | None:
        """The next input, or None."""
        tensor = next(self.tensors, None)
        return None if tensor is None else {self.name: tensor}


def letterboxed(pictures: Sequence[Path], imgsz: tuple[int, int]) -> Iterator[Any]:
    """Images as the network sees them in predict: 1 3 H W float32, RGB in 0..1."""
    import numpy as np

    from yolo_mkd.host.scoring import letterbox

    for picture in pictures:
        planes = letterbox(read_image(picture), imgsz)[..., ::-1].transpose(2, 0, 1)[None]
        yield np.ascontiguousarray(planes, dtype=np.float32) / np.float32(255)


def calibration_images(data: str, count: int, seed: int) -> tuple[list[Path], dict[str, Any]]:
    """Choose training images to calibrate on: none that is a val or test image too, by its path or by its bytes.

    Args:
        data: the data set's YAML.
        count: how many, if there are so many.
        seed: of the choice.

    Returns:
        The images, and the facts for the report: split, images, of, left_out, seed, and a hash of the list.

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
        if picture.resolve() in places or (twins and digest(picture) in map(digest, twins)):
            left_out += 1
        elif len(chosen) < count:
            chosen.append(picture)
    if len(chosen) < FEWEST:
        raise BadInput(
            f"data={data}: {len(chosen)} training images can calibrate INT8, {left_out} are val or test images too: "
            f"give a data set with at least {FEWEST} training images of its own"
        )
    listed = "\n".join(f"{digest(p)}  {p.name}" for p in chosen)
    return chosen, {
        "split": "train",
        "images": len(chosen),
        "of": len(train),
        "left_out": left_out,  # val or test images that the train split holds too
        "seed": seed,
        "list_sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "method": "minmax, symmetric, weights per channel; last convolutions and decode in float",
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def quantise(
    source: Path,
    target: Path,
    pictures: Sequence[Path],
    imgsz: tuple[int, int],
    int8_weights: bool = True,
    nodes: Sequence[str] | None = None,
) -> None:
    """Write an INT8 copy of a float ONNX file: Q/DQ pairs around its weighted operators but the head's last.

    Args:
        source: the float file.
        target: the file to write.
        pictures: the images to calibrate on.
        imgsz: height and width [pixels].
        int8_weights: store weights as INT8; otherwise as float with a Q/DQ pair, which TensorRT before 10 needs.
        nodes: quantise these operators alone; by default all that may be.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(source).graph
    last, decode = decode_nodes(graph)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # ONNX Runtime advises its own preprocessing at every call
    try:
        quantize_static(
            source, target, Letterboxed(pictures, imgsz, graph.input[0].name), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(WEIGHTED), per_channel=True, activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8, nodes_to_quantize=None if nodes is None else list(nodes),
            nodes_to_exclude=sorted(last | decode), calibrate_method=CalibrationMethod.MinMax,
            extra_options={  # what TensorRT reads: no zero points, no INT32 bias
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "AddQDQPairToWeight": not int8_weights,
            },
        )  # fmt: skip
    finally:
        logging.getLogger().setLevel(level)


def quantisable(source: Path) -> list[str]:
    """Names of the operators that `quantise` quantises by default."""
    import onnx

    graph = onnx.load(source).graph
    last, decode = decode_nodes(graph)
    return [n.name for n in graph.node if n.op_type in WEIGHTED and n.name not in last | decode]
