"""Capture of a transformers model through its own exporter.

That exporter prepares inputs, patches masks for tracing, and fuses the graph for ONNX Runtime;
nothing of that is done again here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from moe_export.capture.attention import heads_as_rows
from moe_export.capture.loops.translate import loop_translations
from moe_export.capture.ort_fusions import fuse
from moe_export.errors import UnsupportedModelError
from moe_export.generation.spec import CacheTensor
from moe_export.ops.onnx_ops import translation_table
from moe_export.ops.portable import OPSET
from moe_export.sources.model import LoadedModel
from moe_export.sources.past import GenerativeModel

# What the exporter calls a tensor of the cache, by the layer's number.
_CACHE_LEAF = re.compile(r"(?:in|out)put\.past_key_values\.layers\.(\d+)\.(keys|values)")


def export_pretrained(
    loaded: LoadedModel,
    shapes: Mapping[str, Mapping[int, Any]],
    target: str,
    on_remark: Callable[[str], None],
) -> ir.Model:
    """Trace ``loaded`` with transformers' ONNX exporter.

    Args:
        loaded: The model, its MoE layers bound to their lowered forms.
        shapes: Dynamic axes by input name.
        target: Of the build; decides which fused operators the graph may have.
        on_remark: Told what the user should know.
    """
    from transformers.exporters import exporter_onnx

    # transformers passes this table of its own to torch.onnx.export and has no other way in.
    exporter_onnx._ONNX_TRANSLATION_TABLE.update(translation_table() | loop_translations())
    exporter = exporter_onnx.OnnxExporter()
    config = exporter_onnx.OnnxConfig(
        dynamic_shapes=dict(shapes), opset_version=OPSET, ort_fusions=None
    )
    # The exporter takes output flags out of the inputs it is given.
    with _inputs_as_given(), heads_as_rows(), _hidden_rows_as_eager():
        program, _ = exporter.export_program(
            loaded.model, {**loaded.inputs, **loaded.constants}, config
        )
    return fuse(program, target, on_remark)


@contextmanager
def _inputs_as_given() -> Iterator[None]:
    """Without what the exporter computes from the example beforehand, such as positions.

    These would be inputs of the graph that no caller knows; the model computes them itself.
    """
    from transformers.exporters import utils

    precompute = utils.precompute_export_inputs
    utils.precompute_export_inputs = lambda model, inputs: None
    try:
        yield
    finally:
        utils.precompute_export_inputs = precompute


@contextmanager
def _hidden_rows_as_eager() -> Iterator[None]:
    """What attention gives for a row whose mask adds the lowest number to every key.

    The exporter gives zeros, as kernels on GPUs do; eager on a CPU gives the mean of the values.
    Boolean masks give zeros in both.
    """
    from transformers.exporters import utils

    patches = utils._PATCHES["dynamo"]  # installed last, so that this one is asked first
    patches.append(("torch.nn.functional", "scaled_dot_product_attention", _raise_lowest))
    try:
        yield
    finally:
        patches.pop()


def _raise_lowest(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The attention with half the lowest number in its mask, which no score adds up to either."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,  # noqa: ANN401 - passed on
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        if attn_mask is not None and attn_mask.is_floating_point():
            lowest = torch.finfo(attn_mask.dtype).min
            attn_mask = torch.where(attn_mask == lowest, lowest / 2, attn_mask)
        return attention(query, key, value, attn_mask, *args, **kwargs)

    return attend


def export_with_past(
    loaded: GenerativeModel,
    shapes: Mapping[str, Mapping[int, Any]],
    target: str,
    on_remark: Callable[[str], None],
) -> ir.Model:
    """Trace one graph for prefill and decode: new tokens behind a cache of any length.

    Args:
        loaded: The model with its cache among its inputs.
        shapes: Dynamic axes by input name.
        target: Of the build.
        on_remark: Told what the user should know.
    """
    others, cache = loaded.split(loaded.inputs)
    names = [c.past for c in loaded.spec.caches]
    # A cache is one argument; its tensors come in the order of its layers.
    nested: dict[str, Any] = {name: shapes[name] for name in others}
    nested["past_key_values"] = [shapes[name] for name in names]
    inputs = {**others, "past_key_values": cache}
    whole = replace(loaded, inputs=inputs, constants={"use_cache": True})
    model = export_pretrained(whole, nested, target, on_remark)
    _name_caches(model, loaded.spec.caches)
    return model


def _name_caches(model: ir.Model, caches: Sequence[CacheTensor]) -> None:
    """Give the cache's tensors the names that runtimes know, and check that all are there.

    Raises:
        UnsupportedModelError: the graph leaves a tensor of the cache out.
    """
    for values, names in (
        (model.graph.inputs, [c.past for c in caches]),
        (model.graph.outputs, [c.present for c in caches]),
    ):
        found = {}
        for value in values:
            if match := _CACHE_LEAF.fullmatch(str(value.name)):
                found[2 * int(match[1]) + (match[2] == "values")] = value
        if sorted(found) != list(range(len(names))):
            raise UnsupportedModelError(
                f"--with-past: the traced graph has {len(found)} of the cache's {len(names)} "
                "tensors: a layer does not use its cache. Build without --with-past"
            )
        for index, name in enumerate(names):
            found[index].name = name
