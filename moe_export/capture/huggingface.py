"""Capture of a transformers model through its own exporter.

That exporter prepares inputs, patches masks and attention for tracing, and fuses the graph for ONNX
Runtime; nothing of that is done again here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.sources.model import LoadedModel

# ONNX Runtime's fused operators by target; a portable file has none.
_FUSIONS = {"cpu": "cpu", "portable": None}


def export_pretrained(
    loaded: LoadedModel, shapes: Mapping[str, Mapping[int, Any]], target: str
) -> ir.Model:
    """Trace ``loaded`` with transformers' ONNX exporter.

    Args:
        loaded: The model, its MoE layers bound to their lowered forms.
        shapes: Dynamic axes by input name.
        target: Of the build; decides which fused operators the graph may have.
    """
    from transformers.exporters import exporter_onnx

    # transformers passes this table of its own to torch.onnx.export and has no other way in.
    exporter_onnx._ONNX_TRANSLATION_TABLE.update(translation_table())
    exporter = exporter_onnx.OnnxExporter()
    config = exporter_onnx.OnnxConfig(
        dynamic_shapes=dict(shapes), opset_version=OPSET, ort_fusions=_FUSIONS[target]
    )
    # The exporter takes output flags out of the inputs it is given.
    program, _ = exporter.export_program(
        loaded.model, {**loaded.inputs, **loaded.constants}, config
    )
    model: ir.Model = program
    return model
