"""Read a model: its layers by role, its head's raw outputs, and the weights on which gradients are measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import OBB, Detect, Pose, Pose26, Segment
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.metrics import OKS_SIGMA

from yolo_mkd.host.models import RemovedHead, head
from yolo_mkd.host.spec import KeypointSpec, LayerSpec, ModelSpec
from yolo_mkd.knowledge import Outputs


@torch.no_grad()
def model_spec(model: DetectionModel, imgsz: int) -> ModelSpec:
    """Find a detector's layers by role, with one forward pass over an empty image.

    Args:
        model: a YOLO detector; its weights and statistics do not change.
        imgsz: image size of the shapes [pixels], rounded up to the model's stride as Ultralytics does.
    """
    shapes: dict[int, torch.Size] = {}
    largest = max(int(model.stride.max()), 32)
    imgsz = math.ceil(imgsz / largest) * largest

    def keep(i: int) -> Any:
        return lambda module, inputs, output: shapes.update({i: output.shape}) if isinstance(output, Tensor) else None

    handles = [m.register_forward_hook(keep(i)) for i, m in enumerate(model.model[:-1])]
    end, layers = head(model), model.model
    layers[-1] = RemovedHead(end)  # the head's shapes are not needed, and RT-DETR's fails on small images
    modes = {m: m.training for m in model.modules()}
    channels = int(model.yaml.get("channels", 3))
    try:
        model.eval()(torch.zeros(1, channels, imgsz, imgsz).to(next(model.parameters())))
    finally:
        layers[-1] = end
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training

    strides = tuple(imgsz // shapes[i][2] for i in end.f)
    layers_by_role: dict[str, LayerSpec] = {}
    backbone = range(min(len(model.yaml["backbone"]), len(shapes)))
    for s in strides:
        at = [i for i in backbone if i in shapes and len(shapes[i]) == 4 and imgsz // s == shapes[i][3]]
        if at and at[-1] not in end.f:
            layers_by_role[f"backbone_p{int(math.log2(s))}"] = LayerSpec(at[-1], *shapes[at[-1]][1:])
    for i, s in zip(end.f, strides, strict=True):
        layers_by_role[f"neck_p{int(math.log2(s))}"] = LayerSpec(i, *shapes[i][1:])
    return ModelSpec(
        names=dict(model.names),
        strides=strides,
        branches=branches_of(end),
        reg_max=int(getattr(end, "reg_max", 0)),
        rotated=isinstance(end, OBB),
        layers=layers_by_role,
        channels=channels,
        parameters=sum(p.numel() for p in model.parameters()),
        prototypes=end.nm if isinstance(end, Segment) else 0,
        keypoints=keypoint_spec(model),
    )


def keypoint_spec(model: DetectionModel) -> KeypointSpec | None:
    """The keypoints of a pose model's head, with the sigmas that Ultralytics' loss uses; None for other heads."""
    end = head(model)
    if not isinstance(end, Pose):
        return None
    count, dimensions = end.kpt_shape
    sigmas = getattr(model, "kpt_oks_sigmas", None)
    if sigmas is None:
        sigmas = OKS_SIGMA if list(end.kpt_shape) == [17, 3] else [1 / count] * count
    scale, shift = (1.0, 0.0) if isinstance(end, Pose26) else (2.0, -0.5)  # as in their kpts_decode
    return KeypointSpec(count, dimensions, scale, shift, tuple(map(float, sigmas)))


def branches_of(end: nn.Module) -> tuple[str, ...]:
    """The branches of a head that predict at anchors; none for RT-DETR's decoder."""
    if not isinstance(end, Detect):
        return ()
    return ("one2many", "one2one") if getattr(end, "one2one_cv2", None) is not None else ("one2many",)


def outputs(
    raw: Any, strides: tuple[int, ...], reg_max: int, keypoints: KeypointSpec | None = None
) -> tuple[dict[str, Outputs], dict[int, tuple[int, int]]]:
    """Convert a detection head's raw outputs to `Outputs`.

    Args:
        raw: the model's return value, in training or in eval mode.
        strides: of the head's levels.
        reg_max: bins of a box side's distribution, 1 for none.
        keypoints: of the head; None if it has none.

    Returns:
        The outputs by branch, and rows and columns of each level by stride; both empty if the head was removed.
    """
    raw = raw[1] if isinstance(raw, tuple) else raw
    if not raw:  # a removed head
        return {}, {}
    branches = raw if "one2many" in raw else {"one2many": raw}
    feats = branches["one2many"]["feats"]
    levels = {s: (f.shape[2], f.shape[3]) for s, f in zip(strides, feats, strict=True)}
    by_branch = {}
    for name, branch in branches.items():
        boxes, bins = branch["boxes"].float(), None  # B 4K A
        if reg_max > 1:
            bins = boxes.unflatten(1, (4, reg_max))  # B 4 K A, side-major
            boxes = torch.einsum("bska,k->bsa", bins.softmax(2), torch.arange(reg_max).to(bins))
        by_branch[name] = Outputs(branch["scores"].float(), boxes, bins, **task_outputs(branch, keypoints))
    return by_branch, levels


def task_outputs(branch: dict[str, Any], keypoints: KeypointSpec | None) -> dict[str, Tensor]:
    """What one branch of a segmentation, pose or oriented-box head has beside scores and boxes, by field of `Outputs`.

    Prototypes and coefficients keep their precision: masks are drawn at a few anchors only, and converted there.
    """
    found: dict[str, Tensor] = {}
    if "mask_coefficient" in branch:
        proto = branch["proto"]  # a YOLO26 student's come with the masks of classes
        found |= {"coefficients": branch["mask_coefficient"]}
        found |= {"prototypes": proto[0] if isinstance(proto, tuple) else proto}
    if keypoints is not None and "kpts" in branch:
        raw = branch["kpts"].float().unflatten(1, (keypoints.count, keypoints.dimensions))  # B N D A
        placed = raw[:, :, :2] * keypoints.scale + keypoints.shift
        found["keypoints"] = torch.cat([placed, raw[:, :, 2:]], 2)
    if "angle" in branch:
        found["angles"] = branch["angle"].float().squeeze(1)
    return found


def of_first(raw: Any, count: int) -> Any:
    """A head's raw outputs for the first images of a batch."""
    if isinstance(raw, Tensor):
        return raw[:count]
    if isinstance(raw, dict):
        return {k: of_first(v, count) for k, v in raw.items()}
    return type(raw)(of_first(v, count) for v in raw) if isinstance(raw, list | tuple) else raw


def shared_weights(model: DetectionModel, spec: ModelSpec) -> list[nn.Parameter]:
    """The weights on which the terms' gradients are measured: those of the last layer of each backbone stage.

    The gradients of every term and of the task reach them. They cost half as much as the whole trunk and give similar
    shares (yolo26 at width 0.125 on bccd: 0.8 to 1.5 times the trunk's for the six terms). On the last layer alone,
    attention and guidance, which read that layer or the one after it, seem 2.4 to 3.5 times as strong. If the user
    froze the backbone, all trainable weights before the head.
    """
    roles = [role for role in spec.layers if "backbone" in role]
    ends = [p for role in roles for p in model.model[spec.layers[role].layer].parameters()]
    trunk = [p for layer in model.model[:-1] for p in layer.parameters()]
    groups = ([p for p in group if p.requires_grad] for group in (ends, trunk, model.parameters()))
    return next(group for group in groups if group)


def branch_weights(detection: Any) -> dict[str, float]:
    """The current weight of each branch of the head in the detection loss; their sum is 1."""
    if isinstance(detection, E2ELoss):
        return {"one2many": detection.o2m, "one2one": detection.o2o}
    return {"one2many": 1.0}


def remaining(detection: Any) -> float:
    """The detection loss's current weight on the trunk as a share of its initial weight, in (0, 1].

    Dual heads shift the loss from one2many (0.8 to 0.1 over the run) to one2one, whose gradient stops at the trunk.
    """
    return detection.o2m / detection.o2m_copy if isinstance(detection, E2ELoss) else 1.0


def keep_graphs() -> None:
    """Allow several backward passes through compiled graphs, which measuring gradients needs."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def frozen_head(model: DetectionModel) -> Callable[[list[Tensor]], Outputs]:
    """A detector's one2many branch as a function of the features of its neck, each B C H W.

    A frozen copy in full precision, through which gradients reach the features.

    Args:
        model: a detector whose head predicts at anchors.
    """
    end = copy.deepcopy(head(model)).float().eval().requires_grad_(False)
    strides = tuple(int(s) for s in end.stride)

    def predict(features: list[Tensor]) -> Outputs:
        with torch.autocast(features[0].device.type, enabled=False):
            raw = end.forward_head([f.float() for f in features], **end.one2many)
        return outputs(raw, strides, int(end.reg_max))[0]["one2many"]

    return predict
