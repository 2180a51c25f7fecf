"""The library as the runtime meets it: symbols, versions, inferred shapes, gaps in the inputs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)
from moe_export.runners.library import ort_library_path
from tests.plugins.one_node import make_session


def test_exports_nothing_but_its_interface():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm of binutils")
    command = [nm, "-D", "--defined-only", str(ort_library_path())]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == {
        "RegisterCustomOps",
        "moe_export_ort_version",
        "moe_export_instruction_set",
        "moe_export_read_bandwidth",
        "moe_export_multiply_rate",
    }


def test_says_its_version():
    version = ctypes.CDLL(str(ort_library_path())).moe_export_ort_version
    version.restype = ctypes.c_char_p
    assert version().decode().count(".") >= 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (None, "libmoe_export_cuda.so: file too short"),
        ("libmoe_export_ort.so", "libmoe_export_cuda.so has version unknown, not this library's"),
    ],
)
def test_says_why_the_gpu_library_beside_it_is_not_taken(tmp_path, other, message):
    library = ort_library_path()
    shutil.copy(library, tmp_path)
    beside = tmp_path / "libmoe_export_cuda.so"
    if other is None:
        beside.write_bytes(b"")
    else:
        shutil.copy(library.with_name(other), beside)
    with pytest.raises(Exception, match=message):
        ort.SessionOptions().register_custom_ops_library(str(tmp_path / library.name))


def test_refuses_an_older_runtime_with_its_version():
    messages = []
    create_status_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    get_api_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    get_version_type = ctypes.CFUNCTYPE(ctypes.c_void_p)

    create_status = create_status_type(lambda code, text: messages.append(text.decode()) or 1)
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    get_api = get_api_type(lambda version: ctypes.addressof(table) if version == 1 else None)
    text = ctypes.create_string_buffer(b"1.16.3")
    get_version = get_version_type(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(
        ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p)
    )
    register = ctypes.CDLL(str(ort_library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base))
    assert messages == ["moe_export needs ONNX Runtime 1.17 or newer; this is 1.16.3"]


def infer_shapes(rows):
    """The shapes that the session gives both ops' outputs when their inputs have ``rows`` rows."""

    def shape(columns):
        return None if rows is None else [rows, columns]

    gating, experts = (
        TopKGating(top_k=2),
        GroupedExperts(num_experts=4, hidden_size=8, intermediate_size=6),
    )
    nodes = [
        helper.make_node(
            "TopKGating", ["logits"], ["ids", "weights"], domain="moe_export", **gating.to_onnx()
        ),
        helper.make_node(
            "GroupedExperts",
            ["x", "ids", "weights", "up", "down"],
            ["y"],
            domain="moe_export",
            **experts.to_onnx(),
        ),
        # The runtime keeps declared outputs of the graph as they are: look behind an Identity.
        *(
            helper.make_node("Identity", [name], [f"{name}_out"])
            for name in ("ids", "weights", "y")
        ),
    ]
    inputs = {"logits": shape(4), "x": shape(8), "up": [4, 12, 8], "down": [4, 8, 6]}
    kinds = {
        "ids_out": TensorProto.INT32,
        "weights_out": TensorProto.FLOAT,
        "y_out": TensorProto.FLOAT,
    }
    graph = helper.make_graph(
        nodes,
        "two_nodes",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("moe_export", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ort_library_path()))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [output.shape for output in session.get_outputs()]


@pytest.mark.parametrize("rows", [7, "tokens"])
def test_infers_shapes(rows):
    assert infer_shapes(rows) == [[rows, 2], [rows, 2], [rows, 8]]


def test_infers_columns_when_ranks_are_unknown():
    ids, weights, y = infer_shapes(None)
    assert (ids[1], weights[1], y[1]) == (2, 2, 8)
    assert all(isinstance(name, str) and name for name in (ids[0], weights[0], y[0]))
    assert ids[0] != y[0]


def infer_row_shapes(x_shape, ids_shape):
    """The shapes that the session gives the outputs of the three ops on rows."""
    ops = [
        ExpertDispatch(num_experts=4, hidden_size=8),
        GroupedMatMul(num_experts=4, in_features=8, out_features=6),
        ExpertCombine(hidden_size=6),
    ]
    names = [
        (["x", "ids"], ["rows", "row_map", "ends", "experts"]),
        (["rows", "weight", "ends"], ["product"]),
        (["product", "row_map", "weights"], ["y"]),
    ]
    nodes = [
        helper.make_node(op.op_type, *slots, domain="moe_export", **op.to_onnx())
        for op, slots in zip(ops, names, strict=True)
    ]
    kinds = dict.fromkeys(("rows", "product", "y"), TensorProto.FLOAT)
    kinds |= dict.fromkeys(("row_map", "ends", "experts"), TensorProto.INT32)
    nodes += [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    inputs = {"x": x_shape, "weight": [4, 6, 8], "weights": ids_shape}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    infos.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ids_shape))
    outputs = [helper.make_tensor_value_info(f"{n}_out", k, None) for n, k in kinds.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("moe_export", 1)]
    graph = helper.make_graph(nodes, "three_nodes", infos, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ort_library_path()))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return {o.name.removesuffix("_out"): o.shape for o in session.get_outputs()}


def test_infers_shapes_of_rows():
    shapes = infer_row_shapes([7, 8], [7, 3])
    assert shapes["rows"] == [21, 8]
    assert shapes["product"] == [21, 6]
    assert shapes["experts"] == [21]
    assert (shapes["row_map"], shapes["ends"], shapes["y"]) == ([7, 3], [4], [7, 6])


@pytest.mark.parametrize(
    ("x_shape", "ids_shape"), [(["tokens", 8], ["tokens", 3]), ([7, 8], [7, "k"]), (None, None)]
)
def test_infers_one_name_for_a_number_of_rows_it_does_not_know(x_shape, ids_shape):
    shapes = infer_row_shapes(x_shape, ids_shape)
    name = shapes["rows"][0]
    assert isinstance(name, str)
    assert name not in ("tokens", "k", shapes["row_map"][0])
    assert (shapes["rows"], shapes["product"], shapes["experts"]) == ([name, 8], [name, 6], [name])
    assert shapes["y"] == [shapes["row_map"][0], 6]
    if x_shape is not None:
        assert shapes["row_map"] == ids_shape


def test_gating_inputs_rejects_a_gap():
    inputs = {"logits": np.zeros((1, 4), np.float32), "selection_bias": np.zeros(4, np.float32)}
    attributes = TopKGating(top_k=1, has_selection_bias=True).to_onnx()
    session = make_session("TopKGating", attributes, inputs, left_out={"logits"})
    with pytest.raises(Exception, match="gating_inputs: logits is left out"):
        session.run(None, {"selection_bias": inputs["selection_bias"]})
