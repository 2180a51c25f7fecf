"""Capture of a plain module: ``torch.export``, then ``torch.onnx.export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from moe_export.capture.loops.translate import loop_translations
from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.sources.model import LoadedModel


def export_module(
    loaded: LoadedModel, shapes: Mapping[str, Mapping[int, Any]], outputs: Sequence[str]
) -> ir.Model:
    """Trace ``loaded`` and translate it to ONNX.

    Args:
        loaded: The model, its MoE layers bound to their lowered forms.
        shapes: Dynamic axes by input name.
        outputs: Names of the outputs.
    """
    with torch.no_grad():
        program = torch.export.export(
            loaded.model,
            args=(),
            kwargs={**loaded.inputs, **loaded.constants},
            dynamic_shapes={**shapes, **dict.fromkeys(loaded.constants)},
            strict=False,
        )
    converted = torch.onnx.export(
        program,
        args=(),
        kwargs={**loaded.inputs, **loaded.constants},
        input_names=list(loaded.inputs),
        output_names=list(outputs),
        custom_translation_table=translation_table() | loop_translations(),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if converted is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: ir.Model = converted.model
    return model
