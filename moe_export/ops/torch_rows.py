"""``ExpertDispatch``, ``GroupedMatMul`` and ``ExpertCombine`` as PyTorch custom operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.ops.call import call_attributes, dump_call
from moe_export.ops.layout import SourceLayout
from moe_export.ops.record import OpAttributes, require
from moe_export.ops.spec_rows import ExpertCombine, ExpertDispatch, GroupedMatMul


def expert_dispatch(
    x: Tensor, expert_ids: Tensor, attributes: ExpertDispatch, *, path: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the tokens' slots by expert into rows; see ``plugins/README.md``.

    Args:
        x: ``[T, H]``.
        expert_ids: ``[T, K]`` int32 or int64; an id outside the op's range gets no row.
        attributes: The op's attributes.
        path: The module in the model that this call belongs to.

    Returns:
        ``rows`` ``[T*K, H]`` in x's type, ``row_map`` ``[T, K]``, ``group_ends`` ``[E]`` and
        ``row_experts`` ``[T*K]``, all int32. Gather by the latter with ``index_select``:
        ``vectors[row_experts]`` becomes a GatherND that ONNX forbids for int32.

    Raises:
        ContractError: a shape or a type breaks the contract.
    """
    _check(attributes, [x, expert_ids])
    require(
        expert_ids.dtype in (torch.int32, torch.int64),
        "dispatch_inputs",
        f"expert_ids must be int32 or int64; found {expert_ids.dtype}",
    )
    rows, row_map, group_ends, row_experts = torch.ops.moe_export.expert_dispatch(
        [x, expert_ids], dump_call(attributes, SourceLayout(), path)
    )
    return rows, row_map, group_ends, row_experts


def grouped_matmul(
    rows: Tensor,
    weight: Tensor,
    group_ends: Tensor,
    attributes: GroupedMatMul,
    bias: Tensor | None = None,
    *,
    path: str = "",
) -> Tensor:
    """Multiply each row by its expert's matrix; see ``plugins/README.md``.

    Args:
        rows: ``[M, in_features]``, sorted by expert.
        weight: ``[E, out_features, in_features]``.
        group_ends: ``[E]`` int32, the end of each expert's rows.
        attributes: The op's attributes.
        bias: ``[E, out_features]``, with ``has_bias``.
        path: The module in the model that this call belongs to.

    Returns:
        ``[M, out_features]`` in rows' type; zeros from row ``group_ends[E - 1]`` on.

    Raises:
        ContractError: a shape or a type breaks the contract.
    """
    tensors = [rows, weight, group_ends] if bias is None else [rows, weight, group_ends, bias]
    attributes.storage.check_plain("matmul_c2")
    _check(attributes, tensors)
    _require_int32("group_ends", group_ends, attributes)
    y: Tensor = torch.ops.moe_export.grouped_matmul(
        tensors, dump_call(attributes, SourceLayout(), path)
    )
    return y


def expert_combine(
    rows: Tensor,
    row_map: Tensor,
    expert_weights: Tensor,
    attributes: ExpertCombine,
    *,
    path: str = "",
) -> Tensor:
    """Add up each token's rows by weight; see ``plugins/README.md``.

    Args:
        rows: ``[M, N]``.
        row_map: ``[T, K]`` int32, the row of each slot; -1 adds nothing.
        expert_weights: ``[T, K]`` float32.
        attributes: The op's attributes.
        path: The module in the model that this call belongs to.

    Returns:
        ``[T, N]`` in rows' type.

    Raises:
        ContractError: a shape or a type breaks the contract.
    """
    _check(attributes, [rows, row_map, expert_weights])
    _require_int32("row_map", row_map, attributes)
    y: Tensor = torch.ops.moe_export.expert_combine(
        [rows, row_map, expert_weights], dump_call(attributes, SourceLayout(), path)
    )
    return y


def _check(attributes: OpAttributes, tensors: list[Tensor]) -> None:
    names = attributes.input_names()
    require(
        len(tensors) == len(names),
        f"{attributes.prefix}_inputs",
        f"expected {', '.join(names)}; found {len(tensors)} tensors",
    )
    attributes.check_shapes({n: tuple(t.shape) for n, t in zip(names, tensors, strict=True)})


def _require_int32(name: str, tensor: Tensor, attributes: OpAttributes) -> None:
    require(
        tensor.dtype == torch.int32,
        f"{attributes.prefix}_inputs",
        f"{name} must be int32; found {tensor.dtype}",
    )


@torch.library.custom_op("moe_export::expert_dispatch", mutates_args=())
def _expert_dispatch(tensors: list[Tensor], call: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, ids = tensors
    attributes = call_attributes(ExpertDispatch, call)
    num_slots, num_experts = ids.numel(), attributes.num_experts
    attributes.check_row_count(num_slots)
    local = ids.long().flatten() - attributes.first_expert
    held = (local >= 0) & (local < num_experts)
    expert = torch.where(held, local, num_experts)
    counts = torch.bincount(expert, minlength=num_experts + 1)[:num_experts]
    num_used = int(counts.sum())
    slot = expert.argsort(stable=True)[:num_used]
    rows = x.new_zeros(num_slots, x.shape[1])
    rows[:num_used] = x[slot // ids.shape[1]]
    row_map = torch.full_like(local, -1, dtype=torch.int32)
    row_map[slot] = torch.arange(num_used, dtype=torch.int32, device=x.device)
    row_experts = torch.full_like(row_map, num_experts - 1)
    row_experts[:num_used] = expert[slot].int()
    return rows, row_map.reshape(ids.shape), counts.cumsum(0).int(), row_experts


@_expert_dispatch.register_fake
def _(tensors: list[Tensor], call: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, ids = tensors
    attributes = call_attributes(ExpertDispatch, call)
    num_slots = ids.shape[0] * ids.shape[1]
    return (
        x.new_empty(num_slots, attributes.hidden_size),
        ids.new_empty(ids.shape, dtype=torch.int32),
        ids.new_empty(attributes.num_experts, dtype=torch.int32),
        ids.new_empty(num_slots, dtype=torch.int32),
    )


@torch.library.custom_op("moe_export::grouped_matmul", mutates_args=())
def _grouped_matmul(tensors: list[Tensor], call: str) -> Tensor:
    attributes = call_attributes(GroupedMatMul, call)
    rows, weight, group_ends = tensors[:3]
    bias = tensors[3] if attributes.has_bias else None
    ends = group_ends.tolist()
    attributes.check_group_ends(ends, rows.shape[0])
    y = rows.new_zeros(rows.shape[0], attributes.out_features)
    for e, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if begin < end:
            own = None if bias is None else bias[e]
            y[begin:end] = F.linear(rows[begin:end].to(weight.dtype), weight[e], own)
    return y


@_grouped_matmul.register_fake
def _(tensors: list[Tensor], call: str) -> Tensor:
    attributes = call_attributes(GroupedMatMul, call)
    return tensors[0].new_empty(tensors[0].shape[0], attributes.out_features)


@torch.library.custom_op("moe_export::expert_combine", mutates_args=())
def _expert_combine(tensors: list[Tensor], call: str) -> Tensor:
    attributes = call_attributes(ExpertCombine, call)
    rows, row_map, weights = tensors
    if row_map.numel():
        attributes.check_row_map(int(row_map.min()), int(row_map.max()), rows.shape[0])
    total_type = torch.promote_types(rows.dtype, torch.float32)
    y = rows.new_zeros(row_map.shape[0], rows.shape[1], dtype=total_type)
    for k in range(row_map.shape[1]):
        token = (row_map[:, k] >= 0).nonzero().squeeze(1)
        weight = weights[token, k].to(total_type).unsqueeze(1)
        y[token] += rows[row_map[token, k].long()].to(total_type) * weight
    return y.to(rows.dtype)


@_expert_combine.register_fake
def _(tensors: list[Tensor], call: str) -> Tensor:
    del call
    rows, row_map, _ = tensors
    return rows.new_empty(row_map.shape[0], rows.shape[1])
