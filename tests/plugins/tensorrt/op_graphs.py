"""Graphs of one node for TensorRT: dynamic tokens, weights as initializers of packed bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from moe_export.ops import spec
from moe_export.ops.padded_rows import padded_rows_bytes

TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
}
MOST_TOKENS = 128
NODE = "layers.0/node"


@dataclass
class OpGraph:
    """One node, its inputs, and what it makes of T tokens.

    Attributes:
        attributes: Of the node, every one; tests change them.
        inputs: Type and shape of each input; "T" and "M" are dynamic.
        weights: Shape of each initializer of int8.
        outputs: Names and element types.
    """

    op_type: str
    attributes: dict
    inputs: dict[str, tuple[str, list]]
    outputs: dict[str, str]
    weights: dict[str, list[int]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def model(self):
        """The ONNX model."""
        names = self.order or [*self.inputs, *self.weights]
        node = helper.make_node(
            self.op_type, names, list(self.outputs), NODE, domain=spec.DOMAIN, **self.attributes
        )
        graph = helper.make_graph(
            [node],
            "one_node",
            [
                helper.make_tensor_value_info(name, TYPES[kind], shape)
                for name, (kind, shape) in self.inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, TYPES[kind], None)
                for name, kind in self.outputs.items()
            ],
            [
                numpy_helper.from_array(np.zeros(shape, np.int8), name)
                for name, shape in self.weights.items()
            ],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(spec.DOMAIN, spec.VERSION)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def profile(self):
        """From no tokens to many."""
        return {
            name: [[n if isinstance(s, str) else s for s in shape] for n in (0, 8, MOST_TOKENS)]
            for name, (_, shape) in self.inputs.items()
        }


def gating(element="fp16", **changes):
    """``TopKGating`` over 16 experts."""
    op = spec.TopKGating(**({"top_k": 4, "has_selection_bias": True} | changes))
    inputs = {"logits": (element, ["T", 16])}
    if op.has_selection_bias:
        inputs["selection_bias"] = ("fp32", [16])
    outputs = {"expert_ids": "int32", "expert_weights": "fp32"}
    return OpGraph("TopKGating", op.to_onnx(), inputs, outputs)


def experts(element="fp16", ids="int32", **changes):
    """``GroupedExperts`` of 4 experts, 48 wide inside, on tokens 96 wide."""
    given = {"num_experts": 4, "hidden_size": 96, "intermediate_size": 48, "has_bias": True}
    given |= {"weight_type": element, "weight_layout": "cuda_v1"}
    op = spec.GroupedExperts(**(given | changes))
    rows = 48 * (2 if op.gated else 1)
    stored = {"block_size": op.block_size, "has_zero_point": op.has_zero_point}
    inputs = {
        "x": (element, ["T", 96]),
        "expert_ids": (ids, ["T", 2]),
        "expert_weights": ("fp32", ["T", 2]),
        "up_bias": ("fp32", [4, rows]),
        "down_bias": ("fp32", [4, 96]),
    }
    weights = {
        "up_weight": [4, padded_rows_bytes(op.weight_type, rows, 96, **stored)],
        "down_weight": [4, padded_rows_bytes(op.weight_type, 96, 48, **stored)],
    }
    order = ["x", "expert_ids", "expert_weights", *weights, "up_bias", "down_bias"]
    return OpGraph("GroupedExperts", op.to_onnx(), inputs, {"y": element}, weights, order)


def dispatch(element="fp16", ids="int64"):
    """``ExpertDispatch`` to 4 experts."""
    op = spec.ExpertDispatch(num_experts=4, hidden_size=96, first_expert=2)
    inputs = {"x": (element, ["T", 96]), "expert_ids": (ids, ["T", 2])}
    outputs = {"rows": element, "row_map": "int32", "group_ends": "int32", "row_experts": "int32"}
    return OpGraph("ExpertDispatch", op.to_onnx(), inputs, outputs)


def matmul(element="fp16", **changes):
    """``GroupedMatMul`` by 4 matrices."""
    given = {"num_experts": 4, "in_features": 96, "out_features": 40, "has_bias": True}
    given |= {"weight_type": element, "weight_layout": "cuda_v1"}
    op = spec.GroupedMatMul(**(given | changes))
    stored = {"block_size": op.block_size, "has_zero_point": op.has_zero_point}
    inputs = {
        "rows": (element, ["M", 96]),
        "group_ends": ("int32", [4]),
        "bias": ("fp32", [4, 40]),
    }
    weights = {"weight": [4, padded_rows_bytes(op.weight_type, 40, 96, **stored)]}
    order = ["rows", "weight", "group_ends", "bias"]
    return OpGraph("GroupedMatMul", op.to_onnx(), inputs, {"y": element}, weights, order)


def combine(element="fp16"):
    """``ExpertCombine`` of rows 96 wide."""
    op = spec.ExpertCombine(hidden_size=96)
    inputs = {
        "rows": (element, ["M", 96]),
        "row_map": ("int32", ["T", 2]),
        "expert_weights": ("fp32", ["T", 2]),
    }
    return OpGraph("ExpertCombine", op.to_onnx(), inputs, {"y": element})
