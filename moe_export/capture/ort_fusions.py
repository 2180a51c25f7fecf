"""ONNX Runtime's fused operators for what stands around the experts."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir


def fuse(model: ir.Model, target: str, on_remark: Callable[[str], None]) -> ir.Model:
    """Let transformers fuse norms, rotary embeddings and projections of one input for a target.

    Args:
        model: As transformers' exporter left it.
        target: Of the build; only ``cpu`` has fused operators.
        on_remark: Told if the fusions fail, which leaves the graph as it is: slower and right.

    Returns:
        The fused model, or ``model``.
    """
    if target != "cpu":
        return model
    from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

    fused = model.clone()
    try:
        fuse_for_onnxruntime(fused, "cpu")
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as e:
        on_remark(
            "transformers' fusions for ONNX Runtime fail on this model, which stays in standard "
            f"operators around its experts: {type(e).__name__}: {str(e)[:200]}"
        )
        return model
    return fused
