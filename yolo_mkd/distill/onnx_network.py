"""An ONNX file as a network: run with ONNX Runtime, its maps read from its outputs or from inside its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from yolo_mkd.settings import BadInput

ERRORS_ONLY = 3  # of ONNX Runtime's levels of messages
OF_SHAPES = {"Shape", "Size", "NonZero"}  # operators whose outputs hold no features
NUMBERS = ("mean", "std")  # declared in the file's metadata, as 0.485,0.456,0.406


class OnnxMaps(nn.Module):
    """A frozen network in an ONNX file, which computes tensors of its graph by name.

    Attributes:
        returned: the names of its outputs, or those that its metadata declare as `maps`.
        declares_maps: whether they do.
        inside: the tensors that all features pass through on their way to the outputs, in order.
        parameter_count: numbers among its weights.
        mean: as declared in its metadata; absent if not, like the next ones.
        std: likewise.
        channel_order: likewise.
        input_size: declared, or that of its input if that is fixed [pixels].
    """

    def __init__(self, file: Path):
        """Open a file.

        Raises:
            BadInput: it has other inputs than images, or declares what it does not have.
        """
        super().__init__()
        model = onnx.load(str(file), load_external_data=False)
        graph, self.file = model.graph, file
        self.input, height, width = image_input(file, graph)
        declared = {p.key: p.value for p in model.metadata_props}
        if height and height != width:
            raise BadInput(f"teacher={file} takes images of {height}x{width} pixels: export it for square images")
        if height or "input_size" in declared:
            self.input_size = height or number(file, "input_size", declared["input_size"], int)
        for name in NUMBERS:
            if name in declared:
                setattr(self, name, tuple(number(file, name, v, float) for v in declared[name].split(",")))
        if "channel_order" in declared:
            self.channel_order = declared["channel_order"]
        self.single = self.input.type.tensor_type.shape.dim[0].dim_value
        self.parameter_count = sum(int(np.prod(w.dims)) for w in graph.initializer)
        outputs = [output.name for output in graph.output]
        computed = {name for node in graph.node for name in node.output}
        self.declares_maps = "maps" in declared
        self.returned = [n.strip() for n in declared["maps"].split(",")] if self.declares_maps else outputs
        if unknown := [name for name in self.returned if name not in computed]:
            raise BadInput(
                f"teacher={file}: maps= in its metadata names {unknown[0]}, which its graph does not compute"
            )
        self.inside = passages(graph, self.input.name)
        for name in dict.fromkeys([*self.returned, *self.inside]):
            if name not in outputs:
                graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        self.session = open_session(file, model.SerializeToString())

    @staticmethod
    def weight_files(file: Path) -> list[Path]:
        """The files beside an ONNX file that hold its weights, those that are there; none of a damaged file."""
        try:
            graph = onnx.load(str(file), load_external_data=False).graph
        except DecodeError:
            return []
        entries = (entry for weights in graph.initializer for entry in weights.external_data)
        names = sorted({entry.value for entry in entries if entry.key == "location"})
        return [file.parent / name for name in names if (file.parent / name).is_file()]

    def forward(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors of the graph for images, B 3 H W, by name; those of `returned` by default."""
        wanted = list(names if names is not None else self.returned)
        given = images.detach().cpu().numpy()
        if self.input.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            given = given.astype(np.float16)
        parts = np.split(given, len(given)) if self.single == 1 else [given]
        runs = [self.session.run(wanted, {self.input.name: part}) for part in parts]
        joined = [np.concatenate(found) if len(found) > 1 else found[0] for found in zip(*runs, strict=True)]
        return {n: torch.from_numpy(x).to(images.device) for n, x in zip(wanted, joined, strict=True)}


def image_input(file: Path, graph: Any) -> tuple[Any, int, int]:
    """The one input of a graph, and its height and width [pixels], 0 if any.

    Raises:
        BadInput: it has several, or takes something else than float images of three channels.
    """
    weights = {w.name for w in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    if len(inputs) == 1 and (tensor := inputs[0].type.tensor_type).elem_type in kinds:
        sizes = [d.dim_value for d in tensor.shape.dim]
        if len(sizes) == 4 and sizes[0] in {0, 1} and sizes[1] in {0, 3}:
            return inputs[0], sizes[2], sizes[3]
    found = ", ".join(f"{i.name} {shape_text(i)}" for i in inputs[:3]) or "none"
    raise BadInput(
        f"teacher={file} must have one input of float images, batch x 3 x height x width with a batch of 1 or any "
        f"(found: {found}): export it so"
    )


def shape_text(value: Any) -> str:
    """The shape of an input as text: batchx3x224x224."""
    return "x".join(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim) or "of no shape"


def number(file: Path, name: str, text: str, kind: Any) -> Any:
    """A number that a file's metadata declare.

    Raises:
        BadInput: it is none.
    """
    try:
        return kind(text)
    except ValueError as error:
        raise BadInput(f"teacher={file}: {name}={text} in its metadata must be numbers, for example 224") from error


def open_session(file: Path, content: bytes) -> onnxruntime.InferenceSession:
    """A session of a file's changed content, whose weights may be in files beside it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    wanted = ("CUDAExecutionProvider",) if torch.cuda.is_available() else ()
    available = onnxruntime.get_available_providers()
    providers = [p for p in (*wanted, "CPUExecutionProvider") if p in available]
    return onnxruntime.InferenceSession(content, options, providers=providers)


def passages(graph: Any, source: str) -> list[str]:
    """The tensors of a graph that all features pass through between its input and its outputs, in order.

    Of a chain of blocks these are the blocks' outputs: inside a residual block features pass through either branch.
    """
    features, nodes = {source}, []
    for node in graph.node:  # ONNX requires that a node comes after those that it reads
        if node.op_type not in OF_SHAPES and features.intersection(node.input):
            features.update(node.output)
            nodes.append(node)
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(features.intersection(node.input))
            kept.append(node)
    readers = Counter(name for node in kept for name in node.input if name in features)
    readers.update(output.name for output in graph.output)
    found: list[str] = []
    waiting = {source: readers[source]}
    for node in reversed(kept):
        for name in features.intersection(node.input):
            waiting[name] -= sum(name == read for read in node.input)
            if not waiting[name]:
                del waiting[name]
        waiting |= {name: readers[name] for name in node.output if readers[name]}
        if len(waiting) == 1:
            found += waiting
    return found
