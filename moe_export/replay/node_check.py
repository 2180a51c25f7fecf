"""Each custom node against the NumPy reference, on what the node itself read.

A model's rounding and its routing move from layer to layer; a node on its own inputs has nothing
but its kernels to be wrong by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from moe_export.lower.expert_tensor import read_expert
from moe_export.lower.stored_weights import (
    ExpertAttributes,
    input_values,
    stored_parts,
    stored_tensor,
)
from moe_export.ops import reference, reference_rows
from moe_export.ops.dequantize import dequantize
from moe_export.ops.nodes import node_attributes
from moe_export.ops.spec import (
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    TopKGating,
)
from moe_export.pack.padded_rows import unpack_padded_rows
from moe_export.runners.arrays import Array
from moe_export.tolerances import ROUTER_TIE_TOLERANCE, relative_error

# Attributes of row-major float32 weights.
_PLAIN: Mapping[str, Any] = {
    "weight_type": "fp32",
    "weight_layout": "row_major",
    "block_size": 0,
    "has_zero_point": False,
}
# The reference loops over tokens in Python.
MOST_TOKENS = 16


def check_node(node: ir.Node, seen: Mapping[str, Array]) -> float | None:
    """Error of what a node gave.

    Args:
        node: Of a bundle's graph, with its weights.
        seen: What was read and given, by the value's name; half precision as float32.

    Returns:
        The largest difference over the largest magnitude; infinite where ids differ beyond ties.
        None for weights that were packed for CPUs, which a build compares.
    """
    attributes = node_attributes(node)
    values = [value for value in node.inputs if value is not None]
    named = dict(zip(attributes.input_names(), values, strict=True))
    given = {n: seen[str(v.name)] for n, v in named.items() if v.const_value is None}
    found = [seen[str(value.name)] for value in node.outputs]
    if isinstance(attributes, TopKGating):
        bias = named.get("selection_bias")
        stored = None if bias is None else given.get("selection_bias", _numpy(bias))
        return _gating_error(attributes, given["logits"], stored, found)
    if isinstance(attributes, ExpertDispatch):
        expected = reference_rows.expert_dispatch(given["x"], given["expert_ids"], attributes)
        pairs = zip(found, expected, strict=True)
        return 0.0 if all(np.array_equal(a, b) for a, b in pairs) else float("inf")
    if isinstance(attributes, ExpertCombine):
        return relative_error(
            found[0], reference_rows.expert_combine(**given, attributes=attributes)
        )
    assert isinstance(attributes, ExpertAttributes)  # what is left of the contract
    if attributes.weight_layout == "cpu_v1":
        return None
    if isinstance(attributes, GroupedExperts):
        return _experts_error(node, attributes, given, found[0])
    return _matmul_error(node, attributes, given, found[0])


def _gating_error(
    attributes: TopKGating, logits: Array, bias: Array | None, found: Sequence[Array]
) -> float:
    ids, weights = found
    expected_ids, expected_weights = reference.top_k_gating(logits, attributes, bias)
    differs = (np.sort(ids, axis=1) != np.sort(expected_ids, axis=1)).any(axis=1)
    for token in np.flatnonzero(differs):
        score = reference.score(logits[token].astype(np.float32), attributes)
        choice = score if bias is None else score + bias
        if ids[token].min() < 0 or ids[token].max() >= len(choice):
            return float("inf")
        pair = [np.sort(choice[chosen[token]]) for chosen in (ids, expected_ids)]
        if np.abs(pair[0] - pair[1]).max() > ROUTER_TIE_TOLERANCE * max(1, np.abs(choice).max()):
            return float("inf")
    same = ~differs
    by_id = [np.argsort(chosen[same], axis=1) for chosen in (ids, expected_ids)]
    return relative_error(
        np.take_along_axis(weights[same], by_id[0], axis=1),
        np.take_along_axis(expected_weights[same], by_id[1], axis=1),
    )


def _experts_error(
    node: ir.Node, attributes: GroupedExperts, given: Mapping[str, Array], found: Array
) -> float:
    x, ids, weights = (given[name][:MOST_TOKENS] for name in ("x", "expert_ids", "expert_weights"))
    local = ids.astype(np.int64) - attributes.first_expert
    inside = (local >= 0) & (local < attributes.num_experts)
    used = np.unique(local[inside])
    used = used if len(used) else np.zeros(1, np.int64)
    compact = np.where(inside, np.searchsorted(used, local), -1)
    plain = replace(attributes, num_experts=len(used), first_expert=0, **_PLAIN)
    expected = reference.grouped_experts(
        x,
        compact,
        weights.astype(np.float32),
        attributes=plain,
        **_weights(node, attributes, used.tolist()),
    )
    return relative_error(found[:MOST_TOKENS], expected)


def _matmul_error(
    node: ir.Node, attributes: GroupedMatMul, given: Mapping[str, Array], found: Array
) -> float:
    ends = given["group_ends"]
    used = np.flatnonzero(np.diff(ends, prepend=0))
    used = used if len(used) else np.zeros(1, np.int64)
    expected = reference_rows.grouped_matmul(
        given["rows"],
        group_ends=ends[used],
        attributes=replace(attributes, num_experts=len(used), **_PLAIN),
        **_weights(node, attributes, used.tolist()),
    )
    return relative_error(found, expected)


def _weights(
    node: ir.Node, attributes: ExpertAttributes, experts: Sequence[int]
) -> dict[str, Array]:
    """The numbers that some experts' stored weights stand for, and their biases, by input."""
    found = {}
    plain = replace(attributes.storage, layout="row_major")
    for matrix in attributes.matrices:
        tensors = {
            part: stored_tensor(value)
            for part, value in stored_parts(node, attributes, matrix).items()
        }
        numbers = []
        for expert in experts:
            parts = {part: read_expert(tensor, expert) for part, tensor in tensors.items()}
            if attributes.weight_layout == "cuda_v1":
                parts = unpack_padded_rows(plain, matrix, parts["weight"])
            numbers.append(dequantize(plain, parts, matrix.columns))
        found[f"{matrix.prefix}weight"] = np.stack(numbers)
    for name, value in input_values(node, attributes).items():
        if name.endswith("bias"):
            found[name] = _numpy(value)[list(experts)]
    return found


def _numpy(value: ir.Value) -> Array:
    array: Array = stored_tensor(value).numpy()
    return array
