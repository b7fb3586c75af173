"""Each name of TensorRT that the scripts and the mocks use exists in NVIDIA's bindings, with that many arguments.

benchmarks/tensorrt_api.json was read from the real wheels by benchmarks/tensorrt_api.py.
"""

from __future__ import annotations

import inspect
import json
import re

import fake_tensorrt
import pytest
import tensorrt_api

TABLE = json.loads(tensorrt_api.TABLE.read_text(encoding="utf-8"))
USED = tensorrt_api.used_names()
BEFORE_10 = {  # the script's branches for TensorRT 8, and those for TensorRT 8 to 10
    "NetworkDefinitionCreationFlag", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "ICudaEngine.num_bindings",
    "ICudaEngine.get_binding_shape", "ICudaEngine.get_binding_dtype", "ICudaEngine.binding_is_input",
    "IExecutionContext.execute_async_v2",
}  # fmt: skip
BEFORE_11 = {"BuilderFlag.FP16", "BuilderFlag.INT8"}


def used_with(version: str) -> set[str]:
    """The names that the script uses with a version."""
    major = int(version.split(".")[0])
    return set(USED) - (BEFORE_10 if major >= 10 else set()) - (BEFORE_11 if major >= 11 else set())


def accepted(signature: str) -> range:
    """How many arguments a signature of the bindings takes, without self."""
    inside = signature[1 : signature.index(") -> ")]
    parts = re.split(r", (?=\w+: )", inside)[1:]
    return range(sum(" = " not in p for p in parts), len(parts) + 1)


def test_table_has_the_generations_of_jetpack_5_to_7_and_what_follows():
    assert [v.split(".")[0] for v in sorted(TABLE, key=lambda v: [int(n) for n in v.split(".")])] == [
        "8",
        "10",
        "10",
        "11",
    ]
    assert "10.3.0" in TABLE  # of JetPack 6.1 and 6.2
    assert {"Builder.create_network", "BuilderFlag.TF32", "IExecutionContext.execute_async_v3"} <= set(USED)


@pytest.mark.parametrize("version", TABLE)
def test_names_that_the_script_uses_exist(version):
    assert used_with(version) - set(TABLE[version]) == set()


def test_branches_by_generation_are_needed():
    newest = {major: next(v for v in TABLE if v.startswith(major)) for major in ("8", "10", "11")}
    assert "ICudaEngine.num_bindings" not in TABLE[newest["10"]]
    assert not BEFORE_11 & set(TABLE[newest["11"]]) and set(TABLE[newest["10"]]) >= BEFORE_11


@pytest.mark.parametrize("version", TABLE)
def test_calls_have_as_many_arguments_as_the_bindings_take(version):
    for name in sorted(used_with(version)):
        held = TABLE[version][name]
        for count in USED[name]:
            assert not isinstance(held, str), f"{name} is a {held}, not a function"
            assert any(count in accepted(signature) for signature in held), f"{name} with {count} arguments: {held}"


@pytest.mark.parametrize("version", TABLE)
def test_mocks_have_no_name_and_no_signature_that_the_bindings_lack(version):
    trt = fake_tensorrt.tensorrt(version, fake_tensorrt.Cudart())
    engine = fake_tensorrt.Bound if version.startswith("8") else fake_tensorrt.Named
    config = type(trt.Builder(trt.Logger(2)).create_builder_config())
    classes = {
        "Logger": trt.Logger, "Builder": trt.Builder, "OnnxParser": trt.OnnxParser, "Runtime": trt.Runtime,
        "IBuilderConfig": config, "ICudaEngine": engine, "IExecutionContext": engine,
    }  # fmt: skip
    real, mocked = TABLE[version], set()
    for name in used_with(version):
        owner, _, member = name.partition(".")
        function = getattr(classes.get(owner), member or "__init__", None)
        if not inspect.isfunction(function):
            continue
        mocked.add(name)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        counts = {len(parameters), sum(p.default is p.empty for p in parameters)}
        assert any(counts <= set(accepted(signature)) for signature in real[name]), f"{name}{parameters}: {real[name]}"
    assert len(mocked) >= 12
    assert {name for name in vars(trt.BuilderFlag)} <= {n.split(".")[1] for n in real if n.startswith("BuilderFlag.")}
