"""A student that starts from its teacher: the sliced student computes what the masked teacher does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn.modules.block import Attention
from ultralytics.nn.modules.conv import Conv

from yolo_mkd import host
from yolo_mkd.host.slicing import ABSENT, Kept, Slicer, chosen, output_norm, start_from
from yolo_mkd.settings import BadInput


def model_of(name: str, classes: int = 3) -> Any:
    return host.build(host.find_model("model", name), classes)


def as_if_trained(model: Any, seed: int = 0) -> Any:
    """The model with scales, shifts and statistics that differ by channel, in float64."""
    torch.manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.3)
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
        if isinstance(m, Attention):
            m.qkv.conv.weight.data *= 8  # so that its maps are not uniform
    return model.double()


def mask(teacher: Any, slicer: Slicer) -> None:
    """Let the teacher's channels that the student lacks be 0, and its blocks that the student lacks add nothing."""
    for pair in slicer.pairs:
        conv, index = pair.teacher, pair.index
        if not hasattr(conv, "bn"):
            continue
        held = torch.zeros(conv.conv.out_channels, dtype=torch.double)
        held[index[index >= 0]] = 1
        conv.register_forward_hook(lambda module, x, out, held=held: out * held[:, None, None])
    for block in slicer.omitted:
        adds = type(block).__name__ == "PSABlock"
        block.register_forward_hook(lambda module, x, out, adds=adds: x[0] if adds else 0 * out)


def raw_outputs(model: Any, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    raw = model.eval()(x)[1]
    return [(branch["boxes"], branch["scores"]) for branch in ([*raw.values()] if "one2many" in raw else [raw])]


def assert_equals_the_masked_teacher(student: Any, teacher: Any, classes: list[int]) -> Slicer:
    slicer = Slicer(classes)
    slicer.model(student, teacher)
    x = torch.rand(2, 3, 96, 96, dtype=torch.double)
    whole = raw_outputs(teacher, x)
    mask(teacher, slicer)
    known = [i for i, c in enumerate(classes) if c >= 0]
    pairs = zip(raw_outputs(student, x), raw_outputs(teacher, x), whole, strict=True)
    for (boxes, scores), (their_boxes, their_scores), (unmasked, _) in pairs:
        assert torch.allclose(boxes, their_boxes, atol=1e-6, rtol=0)
        assert torch.allclose(scores[:, known], their_scores[:, [classes[i] for i in known]], atol=1e-6, rtol=0)
        assert not torch.allclose(boxes, unmasked, atol=1e-3)  # something was removed
    return slicer


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("yolo26n.yaml", "yolo26n-w125.yaml"),
        ("yolo26n.yaml", "yolo26n-w1875.yaml"),  # whose one attention head is wider than each of the teacher's two
        ("yolo11n.yaml", "yolo11n-w125.yaml"),
        ("yolov8s.yaml", "yolov8n.yaml"),
        ("yolo26n-obb.yaml", "yolo26n-obb.yaml"),
    ],
)
def test_a_sliced_student_computes_what_the_masked_teacher_does(teacher: str, student: str) -> None:
    ours, theirs = model_of(student).double(), as_if_trained(model_of(teacher))
    if teacher == student:
        assert start_from(ours, theirs, [0, 1, 2], sliced=True)[0] == pytest.approx(1, abs=1e-3)
        x = torch.rand(1, 3, 64, 64, dtype=torch.double)
        for (boxes, scores), (their_boxes, their_scores) in zip(
            raw_outputs(ours, x), raw_outputs(theirs, x), strict=True
        ):
            assert torch.equal(boxes, their_boxes) and torch.equal(scores, their_scores)
        return
    assert_equals_the_masked_teacher(ours, theirs, [0, 1, 2])


def test_classes_are_matched_and_those_of_the_data_alone_keep_their_own_start() -> None:
    ours, theirs = model_of("yolo26n-w125.yaml", 4).double(), as_if_trained(model_of("yolo26n.yaml", 5))
    before = ours.model[-1].cv3[0][-1].bias.clone()
    assert_equals_the_masked_teacher(ours, theirs, [4, ABSENT, 0, 2])
    after = ours.model[-1].cv3[0][-1].bias
    assert after[1] == before[1]
    assert torch.equal(after[[0, 2, 3]], theirs.model[-1].cv3[0][-1].bias[[4, 0, 2]])


def shallower(tmp_path: Path, depth: float) -> str:
    import ultralytics

    stock = Path(ultralytics.__file__).parent / "cfg/models/11/yolo11.yaml"
    (tmp_path / "yolo11n.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(stock.read_text()), "scales": {"n": [depth, 0.125, 1024]}})
    )
    return str(tmp_path / "yolo11n.yaml")


def test_a_shallower_student_lacks_blocks_of_its_teacher(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    theirs = as_if_trained(model_of(shallower(tmp_path / "teacher", 1.0)))
    slicer = assert_equals_the_masked_teacher(model_of(shallower(tmp_path, 0.5)).double(), theirs, [0, 1, 2])
    assert len(slicer.omitted) == 9  # one of two blocks in each C3k2 and in C2PSA


def test_blocks_of_another_kind_are_left_as_they_are() -> None:
    ours, theirs = model_of("yolo26n.yaml").double(), as_if_trained(model_of("yolo26m.yaml"))  # C3k in place of two
    before = ours.model[2].m[0].cv1.conv.weight.clone()
    slicer = assert_equals_the_masked_teacher(ours, theirs, [0, 1, 2])
    assert slicer.differing == 2
    assert torch.equal(ours.model[2].m[0].cv1.conv.weight, before)


# Which channels


def test_the_norm_of_an_output_is_that_of_its_activation() -> None:
    conv = Conv(1, 3, act=False).double()
    conv.bn.weight.data, conv.bn.bias.data = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([4.0, 0.0, 2.0])
    assert output_norm(conv).tolist() == pytest.approx([5, 1, 2], rel=2e-3)  # of scale and shift together
    active = Conv(1, 2)
    active.bn.weight.data, active.bn.bias.data = torch.zeros(2), torch.tensor([-6.0, 6.0])
    low, high = output_norm(active).tolist()
    assert (low, high) == pytest.approx((6 / (1 + math.exp(6)), 6 / (1 + math.exp(-6))), rel=1e-4)  # SiLU(-6), SiLU(6)


def test_the_largest_are_kept_in_their_order() -> None:
    assert chosen(torch.tensor([1.0, 5.0, 2.0, 9.0]), 2).index.tolist() == [1, 3]
    assert chosen(torch.tensor([1.0, 5.0]), 3).index.tolist() == [0, 1, ABSENT]
    joined = Kept.concatenated([Kept(torch.tensor([1, ABSENT]), 4), Kept(torch.tensor([0]), 2)])
    assert (joined.index.tolist(), joined.width) == ([1, ABSENT, 4], 6)


def test_a_channel_matters_for_what_is_added_to_it() -> None:
    """Of a residual stream both summands count: 1 + 5 is more than 4 + 1."""
    convs = [Conv(1, 2, act=False), Conv(1, 2, act=False)]
    for conv, scale in zip(convs, ([1.0, 4.0], [5.0, 1.0]), strict=True):
        conv.bn.weight.data = torch.tensor(scale)
    kept = Slicer([]).conv(Conv(1, 1, act=False), convs[0], Kept.all(1), beside=convs[1:])
    assert kept.index.tolist() == [0]


def test_attention_of_fewer_keys_keeps_its_scale() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, num_heads=1).double().eval(), Attention(32, num_heads=2).double().eval()
    theirs.qkv.bn.weight.data.uniform_(0.5, 1.5)
    slicer = Slicer([])
    slicer.attention(ours, theirs, Kept(torch.arange(8), 32))
    x = torch.zeros(1, 32, 4, 4, dtype=torch.double)
    x[:, :8] = torch.rand(8, 4, 4)
    mask(theirs, slicer)
    assert torch.allclose(ours(x[:, :8]), theirs(x)[:, :8], atol=1e-9)


# What cannot be sliced


@pytest.mark.parametrize(
    ("teacher", "student", "sliced", "message"),
    [
        ("yolo11n.yaml", "yolov8n.yaml", True, "start=slice: the student has 23 layers, the teacher 24: give"),
        ("yolov8n.yaml", "yolov5n.yaml", True, "start=slice: the student has 25 layers, the teacher 23: give"),
        ("yolo11n.yaml", "yolo26n.yaml", True, "start=slice: SPPF of the student and of the teacher differ: give"),
        ("yolo12n.yaml", "yolo12n.yaml", True, "start=slice cannot slice A2C2f: it works on detectors"),
        ("yolo11n-seg.yaml", "yolo11n-seg.yaml", True, "start=slice cannot slice the head Segment: it works on"),
        ("yolov8n.yaml", "yolov8s.yaml", False, "start=teacher needs equal shapes, but model.0.conv.weight has [32,"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused_in_one_line(teacher: str, student: str, sliced: bool, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        start_from(model_of(student), model_of(teacher), [0, 1, 2], sliced=sliced)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_copy_has_the_teachers_weights_and_its_classes_by_name() -> None:
    ours, theirs = model_of("yolo12n.yaml", 2), as_if_trained(model_of("yolo12n.yaml", 3)).float()
    share, pairs = start_from(ours, theirs, [2, ABSENT], sliced=False)
    assert not pairs
    assert 0.99 < share < 1
    assert torch.equal(ours.model[5].conv.weight, theirs.model[5].conv.weight)
    assert torch.equal(ours.model[-1].cv3[1][-1].weight[0], theirs.model[-1].cv3[1][-1].weight[2])
    assert not torch.equal(ours.model[-1].cv3[1][-1].weight[1], theirs.model[-1].cv3[1][-1].weight[1])
