"""A target determines the opset and rejects what is known to fail on it, with a link to the issue."""

from __future__ import annotations

import pytest

from yolo_mkd.deploy.export.targets import choose_head, choose_opset, load_target
from yolo_mkd.settings import BadInput


@pytest.mark.parametrize(("name", "opset"), [("jp5", 17), ("jp6", 17), ("jp7", 18), ("generic", 18)])
def test_opset_is_the_targets_own_unless_a_lower_one_is_requested(name, opset):
    assert choose_opset(load_target(name), None) == opset
    assert choose_opset(load_target(name), 13) == 13


def test_opset_above_the_devices_is_an_error():
    with pytest.raises(BadInput, match=r"opset=18 is above what target=jp5 supports .*TensorRT 8\.5.*: use opset=17"):
        choose_opset(load_target("jp5"), 18)
    assert choose_opset(load_target("generic"), 20) == 20
    with pytest.raises(BadInput, match="opset=new must be a whole number"):
        choose_opset(load_target("generic"), "new")


@pytest.mark.parametrize(
    ("target", "format", "quantize", "requested", "has_one2one", "head"),
    [
        ("generic", "onnx", None, None, True, "one2one"),
        ("generic", "onnx", None, None, False, "one2many"),
        ("generic", "onnx", None, "one2many", True, "one2many"),
        ("generic", "onnx", 8, None, True, "one2one"),
        ("generic", "ncnn", None, None, True, "one2many"),
        ("jp6", "onnx", None, None, True, "one2one"),
        ("jp6", "onnx", 16, None, True, "one2one"),
        ("jp6", "onnx", 8, None, True, "one2many"),
        ("jp7", "onnx", 8, None, True, "one2one"),
    ],
)
def test_head_is_nms_free_where_model_and_target_allow_it(target, format, quantize, requested, has_one2one, head):
    assert choose_head(load_target(target), format, quantize, requested, has_one2one) == head


def test_another_head_than_the_default_is_printed_with_its_reason(capsys):
    choose_head(load_target("jp6"), "onnx", 8, None, True)
    assert "one2many: TensorRT 10.3 of JetPack 6 cannot build INT8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "format", "quantize", "has_one2one", "message"),
    [
        ("generic", "onnx", None, False, "the model has no NMS-free head: use head=one2many"),
        ("generic", "ncnn", None, True, "NCNN does not support TopK"),
        ("jp6", "onnx", 8, True, r"ultralytics#23841, #26655\): use head=one2many"),
    ],
)
def test_head_that_fails_on_the_target_is_an_error_with_the_reason(target, format, quantize, has_one2one, message):
    with pytest.raises(BadInput, match=message):
        choose_head(load_target(target), format, quantize, "one2one", has_one2one)


def test_devices_with_tensorrt_8_get_float_weights():
    assert {name: load_target(name).quantized_weights for name in ("jp5", "jp6", "jp7", "generic")} == {
        "jp5": False, "jp6": False, "jp7": True, "generic": True,
    }  # fmt: skip
