"""The ops as PyTorch custom operators with real CPU bodies, so that lowered models run in eager."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from moe_export.ops.call import call_attributes, call_layout, dump_call
from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import GroupedExperts, TopKGating, require
from moe_export.ops.torch_rows import expert_combine, expert_dispatch, grouped_matmul

__all__ = [
    "ACTIVATIONS",
    "expert_combine",
    "expert_dispatch",
    "expert_ffn",
    "expert_inner",
    "grouped_experts",
    "grouped_matmul",
    "top_k_gating",
]


def top_k_gating(
    logits: Tensor, attributes: TopKGating, selection_bias: Tensor | None = None, *, path: str = ""
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts; see ``plugins/README.md``.

    Args:
        logits: ``[T, E]``, computed in float32.
        attributes: The op's attributes.
        selection_bias: ``[E]`` float32, with ``has_selection_bias``.
        path: The module in the model that this call belongs to.

    Returns:
        ``expert_ids`` ``[T, K]`` int32 and ``expert_weights`` ``[T, K]`` float32.

    Raises:
        ContractError: a shape breaks a constraint.
    """
    require(
        (selection_bias is not None) == attributes.has_selection_bias,
        "gating_c3",
        "selection_bias must be given exactly when has_selection_bias is set",
    )
    tensors = [logits.float()] if selection_bias is None else [logits.float(), selection_bias]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    attributes.check_shapes(dict(zip(attributes.input_names(), shapes, strict=True)))
    ids, weights = torch.ops.moe_export.top_k_gating(
        tensors, dump_call(attributes, SourceLayout(), path)
    )
    return ids, weights


def grouped_experts(
    tensors: list[Tensor],
    attributes: GroupedExperts,
    layout: SourceLayout | None = None,
    *,
    path: str = "",
) -> Tensor:
    """Apply to each token its experts and add them up by weight; see ``plugins/README.md``.

    Args:
        tensors: ``x [T, H]``, ``expert_ids [T, K]``, ``expert_weights [T, K]`` float32, then the
            weights and biases that ``attributes.input_names()`` lists, float32, in ``layout``.
        attributes: The op's attributes.
        layout: How the weights are stored; row-major without it.
        path: The module in the model that this call belongs to.

    Returns:
        ``[T, H]`` in x's type.

    Raises:
        ContractError: a shape breaks a constraint, or the weights are not stored in float32.
    """
    layout = layout or SourceLayout()
    names = attributes.input_names()
    require(
        len(tensors) == len(names),
        "experts_inputs",
        f"expected {', '.join(names)}; found {len(tensors)} tensors",
    )
    attributes.storage.check_plain("experts_c4")
    attributes.check_shapes(
        {n: layout.row_major_shape(n, t.shape) for n, t in zip(names, tensors, strict=True)}
    )
    y: Tensor = torch.ops.moe_export.grouped_experts(tensors, dump_call(attributes, layout, path))
    return y


@torch.library.custom_op("moe_export::top_k_gating", mutates_args=())
def _top_k_gating(tensors: list[Tensor], call: str) -> tuple[Tensor, Tensor]:
    attributes = call_attributes(TopKGating, call)
    logits, bias = tensors[0], tensors[1] if len(tensors) > 1 else None
    score = _SCORES[attributes.score_function](logits)
    choice = score if bias is None else score + bias
    choice = choice.masked_fill(choice.isnan(), float("-inf"))
    if attributes.num_groups > 1:
        choice = _keep_groups(choice, attributes)
    # A stable sort, since torch.topk gives no order among equals.
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, : attributes.top_k]
    weight = score.gather(-1, ids)
    if attributes.weight_function != "score":
        weight = _SCORES[attributes.weight_function](logits.gather(-1, ids))
    if attributes.renormalize:
        total = weight.sum(-1, keepdim=True)
        add = attributes.epsilon_mode == "add"
        weight = weight / (
            total + attributes.epsilon if add else total.clamp(min=attributes.epsilon)
        )
    return ids.to(torch.int32), weight * attributes.scale


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda v: v.softmax(-1),
    "sigmoid": lambda v: v.sigmoid(),
    "sqrt_softplus": lambda v: F.softplus(v).sqrt(),
    "identity": lambda v: v.clone(),
}


def _keep_groups(choice: Tensor, attributes: TopKGating) -> Tensor:
    blocks = choice.unflatten(-1, (attributes.num_groups, -1))
    best = blocks.sort(dim=-1, descending=True).values
    score = best[..., 0] if attributes.group_score == "max" else best[..., :2].sum(-1)
    order = score.sort(dim=-1, descending=True, stable=True).indices[:, : attributes.top_groups]
    kept = torch.zeros_like(score, dtype=torch.bool).scatter(1, order, True)
    excluded = float("-inf") if attributes.excluded_score == "neg_inf" else 0.0
    masked: Tensor = blocks.masked_fill(~kept.unsqueeze(-1), excluded)
    return masked.flatten(-2)


@_top_k_gating.register_fake
def _(tensors: list[Tensor], call: str) -> tuple[Tensor, Tensor]:
    shape = (tensors[0].shape[0], call_attributes(TopKGating, call).top_k)
    return tensors[0].new_empty(shape, dtype=torch.int32), tensors[0].new_empty(shape)


@torch.library.custom_op("moe_export::grouped_experts", mutates_args=())
def _grouped_experts(tensors: list[Tensor], call: str) -> Tensor:
    attributes, layout = call_attributes(GroupedExperts, call), call_layout(call)
    x, ids, weights, *parameters = tensors
    stored = dict(zip(attributes.parameter_names(), parameters, strict=True))
    y = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    local = ids.long() - attributes.first_expert
    for e in local.unique().tolist():
        if not 0 <= e < attributes.num_experts:
            continue
        expert = {n: layout.to_row_major(n, t[e : e + 1])[0] for n, t in stored.items()}
        token, slot = (local == e).nonzero(as_tuple=True)
        weight = weights[token, slot].unsqueeze(-1)
        rows = x[token].to(y.dtype)
        rows = rows * weight if attributes.weight_on == "input" else rows
        out = expert_ffn(rows, expert, attributes)
        y.index_add_(0, token, out if attributes.weight_on == "input" else out * weight)
    return y.to(x.dtype)


@_grouped_experts.register_fake
def _(tensors: list[Tensor], call: str) -> Tensor:
    del call
    return torch.empty_like(tensors[0])


ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "silu": lambda v, alpha: v * (alpha * v).sigmoid(),
    "gelu": lambda v, _: F.gelu(v),
    "gelu_tanh": lambda v, _: F.gelu(v, approximate="tanh"),
    "relu": lambda v, _: v.relu(),
    "relu2": lambda v, _: v.relu().square(),
    "identity": lambda v, _: v,
}


def expert_inner(projected: Tensor, attributes: GroupedExperts) -> Tensor:
    """From an expert's up projection ``[N, 2·I]`` (gate first) or ``[N, I]`` to h ``[N, I]``."""
    act = ACTIVATIONS[attributes.activation]
    if not attributes.gated:
        return act(projected, attributes.alpha)
    gate, up = projected.chunk(2, dim=-1)
    limit = attributes.limit if attributes.limit > 0 else float("inf")
    up = up.clamp(-limit, limit)
    if attributes.limit_on == "input":
        activated = act(gate.clamp(max=limit), attributes.alpha)
    else:
        activated = act(gate, attributes.alpha).clamp(max=limit)
    return activated * (up + attributes.up_offset)


def expert_ffn(rows: Tensor, expert: dict[str, Tensor], attributes: GroupedExperts) -> Tensor:
    """One expert on ``rows [N, H]``; ``expert`` maps input names to that expert's tensors."""
    projected = F.linear(rows, expert["up_weight"], expert.get("up_bias"))
    return F.linear(
        expert_inner(projected, attributes), expert["down_weight"], expert.get("down_bias")
    )
