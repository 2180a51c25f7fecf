"""The ops in ONNX: schemas made from the contract, and the translation of the PyTorch operators."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

import onnx.defs
import onnx_ir as ir
import onnxscript
import torch

import moe_export.ops.torch_ops  # noqa: F401 - registers the operators that are translated
from moe_export.ops import spec
from moe_export.ops.layout import SourceLayout
from moe_export.ops.nodes import PATH_KEY

# Metadata that a node carries from tracing to lowering, besides its path.
LAYOUT_KEY = "moe_export.layout"

_ANY_TYPE = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int8)"]
_INT32 = ["tensor(int32)"]
_ID_TYPE = ["tensor(int32)", "tensor(int64)"]
# How many inputs there are at least, and as many as the fullest set of attributes asks for.
_INPUT_SLOTS = {
    "TopKGating": (1, 2),
    "GroupedExperts": (5, 11),
    "ExpertDispatch": (2, 2),
    "GroupedMatMul": (3, 6),
    "ExpertCombine": (3, 3),
}
# Inputs that hold integers.
_INTEGER_INPUTS = {
    ("GroupedExperts", 1): _ID_TYPE,
    ("ExpertDispatch", 1): _ID_TYPE,
    ("GroupedMatMul", 2): _INT32,
    ("ExpertCombine", 1): _INT32,
}
# Outputs in another type than the first input's.
_OUTPUT_TYPES = {
    "expert_ids": "tensor(int32)",
    "expert_weights": "tensor(float)",
    "row_map": "tensor(int32)",
    "group_ends": "tensor(int32)",
    "row_experts": "tensor(int32)",
}


def _schema(op: type[spec.OpAttributes]) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    kinds = {int: schema.AttrType.INT, bool: schema.AttrType.INT, float: schema.AttrType.FLOAT}
    hints = get_type_hints(op)
    required, most = _INPUT_SLOTS[op.op_type]
    optional = schema.FormalParameterOption.Optional
    single = schema.FormalParameterOption.Single
    return schema(
        op.op_type,
        spec.DOMAIN,
        spec.VERSION,
        doc="See plugins/README.md.",
        inputs=[
            schema.FormalParameter(
                f"input_{i}", f"T{i}", param_option=single if i < required else optional
            )
            for i in range(most)
        ],
        outputs=[
            schema.FormalParameter(name, _OUTPUT_TYPES.get(name, "T0"))
            for name in spec.OUTPUT_NAMES[op.op_type]
        ],
        type_constraints=[
            (f"T{i}", _INTEGER_INPUTS.get((op.op_type, i), _ANY_TYPE), "") for i in range(most)
        ],
        attributes=[
            schema.Attribute(
                f.name, kinds.get(hints[f.name], schema.AttrType.STRING), required=True
            )
            for f in fields(op)
        ],
    )


@cache
def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """PyTorch operators of the contract with their ONNX translations, for ``torch.onnx.export``."""
    for op in spec.OPS:
        if not onnx.defs.has(op.op_type, spec.DOMAIN):
            onnx.defs.register_schema(_schema(op))
    opset = onnxscript.values.Opset(spec.DOMAIN, spec.VERSION)

    def translate(op_type: str) -> Callable[..., Any]:
        def function(tensors, call: str):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            parsed = json.loads(call)
            outputs = getattr(opset, op_type)(*tensors, **parsed["attributes"])
            first = outputs if isinstance(outputs, ir.Value) else outputs[0]
            if (node := first.producer()) is not None:
                node.metadata_props[PATH_KEY] = parsed["path"]
                node.metadata_props[LAYOUT_KEY] = json.dumps(parsed["layout"])
            return outputs

        return function

    return {
        torch.ops.moe_export.top_k_gating.default: translate("TopKGating"),
        torch.ops.moe_export.grouped_experts.default: translate("GroupedExperts"),
        torch.ops.moe_export.expert_dispatch.default: translate("ExpertDispatch"),
        torch.ops.moe_export.grouped_matmul.default: translate("GroupedMatMul"),
        torch.ops.moe_export.expert_combine.default: translate("ExpertCombine"),
    }


def node_layout(node: ir.Node) -> SourceLayout:
    """How the checkpoint stores the weights that ``node`` reads."""
    return SourceLayout(**json.loads(node.metadata_props[LAYOUT_KEY]))
