"""Cut an exported ONNX file before its decode, for compilers that quantise the whole graph: RKNN, Hailo.

python benchmarks/cut_graph.py best.onnx cut.onnx

They take the raw maps of the head as outputs: one INT8 scale for boxes and scores leaves scores few or no levels, and
TopK, GatherElements and Mod of the NMS-free head are not supported or run on the processor. The decode then runs in
numpy (`decode_maps`, whose result `edge.boxes.decode_boxes` reads as head one2many) or in C++ of the same few lines.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_mkd.deploy.export.graph import decode_nodes

DECODE_ONLY = {"TopK", "GatherElements", "Mod", "NonMaxSuppression"}  # operators that must not be left


def cut_graph(source: Path, target: Path) -> list[str]:
    """Write the graph up to the head's last convolutions, and return the names of its outputs.

    The outputs are ordered by level, the finest first, and boxes before scores.

    Args:
        source: the .onnx file of yolo-mkd export, with either head.
        target: the file to write.

    Raises:
        ValueError: the graph does not end in maps of boxes and scores, or operators of the decode are left.
    """
    import onnx
    from onnx.utils import Extractor

    model = onnx.shape_inference.infer_shapes(onnx.load(source))
    last, _ = decode_nodes(model.graph)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    maps = [n.output[0] for n in model.graph.node if n.name in last]
    boxes_first = sorted(maps, key=lambda name: (-shapes[name][2], "cv3" in name))
    if len(maps) % 2 or any(
        "cv2" not in b or "cv3" not in s for b, s in zip(boxes_first[::2], boxes_first[1::2], strict=True)
    ):
        raise ValueError(f"{source.name} does not end in pairs of box and score maps, but in {maps}")
    cut = Extractor(model).extract_model([i.name for i in model.graph.input], boxes_first)
    if left := {n.op_type for n in cut.graph.node} & DECODE_ONLY:
        raise ValueError(f"{source.name} computes {', '.join(sorted(left))} before its last convolutions")
    onnx.checker.check_model(cut)
    onnx.save(cut, target)
    return boxes_first


def decode_maps(maps: list[NDArray[Any]], imgsz: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes and scores of a cut graph's outputs, as head one2many has them: 1 x (4 + classes) x anchors.

    Head one2many then needs NMS. With head one2one each pair of anchor and class above the threshold is a final box.

    Args:
        maps: box map and score map of each level; box maps have 4 x bins channels (DFL, Generalized Focal Loss, NeurIPS
            2020, eq. 5), or 4 channels with the distances themselves.
        imgsz: height and width of the input [pixels].
    """
    columns = []
    for boxes, scores in zip(maps[::2], maps[1::2], strict=True):
        channels, height, width = boxes.shape[1:]
        stride = imgsz[0] / height
        bins = boxes[0].reshape(4, channels // 4, height * width)
        if channels > 4:
            shares = np.exp(bins - bins.max(1, keepdims=True))
            bins = (shares / shares.sum(1, keepdims=True) * np.arange(channels // 4)[:, None]).sum(1, keepdims=True)
        left, top, right, bottom = bins[:, 0]
        y, x = (place.ravel() + 0.5 for place in np.mgrid[:height, :width])
        centre_size = [x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom]
        probability = 1 / (1 + np.exp(-scores[0].reshape(scores.shape[1], -1)))
        columns.append(np.vstack([np.stack(centre_size) * stride, probability]))
    return np.hstack(columns)[None].astype(np.float32)


if __name__ == "__main__":
    print(*cut_graph(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
