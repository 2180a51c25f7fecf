"""Executable meaning of ``ExpertDispatch``, ``GroupedMatMul`` and ``ExpertCombine`` in loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ops.dequantize import dequantize
from moe_export.ops.record import OpAttributes, require
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul

Array = NDArray[Any]
Float = NDArray[np.float32]
Int32 = NDArray[np.int32]


def expert_dispatch(
    x: Float, expert_ids: NDArray[np.integer], attributes: ExpertDispatch
) -> tuple[Float, Int32, Int32, Int32]:
    """Sort the tokens' slots by expert into rows.

    Args:
        x: ``[T, H]``.
        expert_ids: ``[T, K]``; an id outside the node's range gets no row.
        attributes: The node's attributes.

    Returns:
        ``rows`` ``[T*K, H]`` in x's type, ``row_map`` ``[T, K]``, ``group_ends`` ``[E]`` and
        ``row_experts`` ``[T*K]``, all int32.

    Raises:
        ContractError: a shape breaks a constraint (dispatch_c1, dispatch_c2, dispatch_c4).
    """
    _check_shapes(attributes, {"x": x.shape, "expert_ids": expert_ids.shape})
    attributes.check_row_count(expert_ids.size)
    rows = np.zeros((expert_ids.size, attributes.hidden_size), x.dtype)
    row_map = np.full(expert_ids.shape, -1, np.int32)
    group_ends = np.zeros(attributes.num_experts, np.int32)
    row_experts = np.full(expert_ids.size, attributes.num_experts - 1, np.int32)
    row = 0
    for e in range(attributes.num_experts):
        for t, k in np.ndindex(expert_ids.shape):
            if int(expert_ids[t, k]) - attributes.first_expert == e:
                rows[row], row_map[t, k], row_experts[row] = x[t], row, e
                row += 1
        group_ends[e] = row
    return rows, row_map, group_ends, row_experts


def grouped_matmul(
    rows: Float,
    weight: Array,
    group_ends: Int32,
    attributes: GroupedMatMul,
    bias: Float | None = None,
    **quantization: Array,
) -> Float:
    """Multiply each row by its expert's matrix, in float64 inside.

    Args:
        rows: ``[M, in_features]``, sorted by expert.
        weight: ``[E, out_features, in_features]``, as ``weight_type`` says.
        group_ends: ``[E]``, the end of each expert's rows.
        attributes: The node's attributes; the weight is row-major.
        bias: ``[E, out_features]``, with ``has_bias``.
        **quantization: ``scale`` and ``zero``, as needed.

    Returns:
        ``[M, out_features]`` in rows' type; zeros from row ``group_ends[E - 1]`` on.

    Raises:
        ContractError: a shape, the storage of the weight or a value of ``group_ends`` breaks a
            constraint.
    """
    given = {"rows": rows, "weight": weight, "group_ends": group_ends}
    given |= quantization if bias is None else {"bias": bias} | quantization
    _check_shapes(attributes, {name: array.shape for name, array in given.items()})
    attributes.check_group_ends(group_ends.tolist(), rows.shape[0])
    y = np.zeros((rows.shape[0], attributes.out_features), np.float64)
    begin = 0
    storage = attributes.storage
    for e, end in enumerate(group_ends.tolist()):
        parts = {part: given[part][e] for part in storage.parts}
        matrix = dequantize(storage, parts, attributes.in_features).astype(np.float64)
        for m in range(begin, end):
            y[m] = matrix @ rows[m].astype(np.float64)
            if bias is not None:
                y[m] += bias[e]
        begin = end
    return y.astype(rows.dtype)


def expert_combine(
    rows: Float, row_map: Int32, expert_weights: Float, attributes: ExpertCombine
) -> Float:
    """Add up each token's rows by weight, in float64 inside.

    Args:
        rows: ``[M, N]``.
        row_map: ``[T, K]``, the row of each slot; -1 adds nothing, and its weight is not read.
        expert_weights: ``[T, K]``.
        attributes: The node's attributes.

    Returns:
        ``[T, N]`` in rows' type.

    Raises:
        ContractError: a shape or a value of ``row_map`` breaks a constraint.
    """
    shapes = {"rows": rows.shape, "row_map": row_map.shape, "expert_weights": expert_weights.shape}
    _check_shapes(attributes, shapes)
    if row_map.size:
        attributes.check_row_map(int(row_map.min()), int(row_map.max()), rows.shape[0])
    y = np.zeros((row_map.shape[0], rows.shape[1]), np.float64)
    for t, k in np.ndindex(row_map.shape):
        if row_map[t, k] >= 0:
            y[t] += np.float64(expert_weights[t, k]) * rows[row_map[t, k]].astype(np.float64)
    return y.astype(rows.dtype)


def _check_shapes(attributes: OpAttributes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    names = attributes.input_names()
    require(
        tuple(shapes) == names,
        f"{attributes.prefix}_inputs",
        f"expected {', '.join(names)}; found {', '.join(shapes)}",
    )
    attributes.check_shapes(shapes)
