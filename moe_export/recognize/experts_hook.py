"""Experts that transformers lets a registered function compute: 64 families by one mechanism.

transformers' ``use_experts_implementation`` decorator leaves flags on the module that say how its
stacked weights lie. Nothing here knows a model's name: the inner function is found by probing, and
the whole is compared with the class's own eager code. Where that is not the contract's FFN, the
products alone become ops, with the class's own code between them (``unfused_hook.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.errors import ContractError, UnsupportedModelError
from moe_export.ops import torch_ops
from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import GroupedExperts
from moe_export.ops.spec_rows import GroupedMatMul
from moe_export.recognize.block import ExpertsFunction, MoeBlock, Proof, bound, parameter_name
from moe_export.recognize.expert_inner import InnerFit, probe_inner
from moe_export.recognize.unfused_hook import UnfusedHookedExperts, inner_operators
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")


def has_experts_hook(module: nn.Module) -> bool:
    """Whether transformers' decorator was applied to the module's class."""
    return all(hasattr(module, flag) for flag in _FLAGS)


def recognize_hooked_experts(path: str, module: nn.Module) -> MoeBlock:
    """Describe decorated experts and prove the description on every expert.

    Raises:
        UnsupportedModelError: the op contract cannot say what the experts compute.
    """
    names = _weight_names(module)
    missing = [stored for stored in names.values() if not _is_tensor(module, stored)]
    if missing:
        raise _refusal(path, module, f"it has no tensor {', '.join(missing)}")
    layout = SourceLayout(
        transposed=bool(module.is_transposed),
        interleaved=bool(module.has_gate and not module.is_concatenated),
    )
    base = _base_attributes(path, module, names, layout)
    fit = _fit(module, base, layout)
    eager = _eager_forward(module)
    if not fit.agrees or getattr(module, "has_post_expert_norm", False):
        return _unfused(path, module, base, layout, eager)
    experts = fit.attributes

    def lowered(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows, ids, weights = _as_inputs(hidden_states, top_k_index, top_k_weights)
        stored = [getattr(module, names[name]) for name in experts.input_names()[3:]]
        y = torch_ops.grouped_experts([rows, ids, weights, *stored], experts, layout, path=path)
        return y if hidden_states.dim() == 2 else y.reshape(hidden_states.shape)

    return MoeBlock(
        path=path,
        kind="experts hook",
        module=module,
        experts=experts,
        lowered=lowered,
        layout=layout,
        eager_experts=eager,
        proof=_prove(path, module, eager, lowered, base, f"{experts.activation} experts"),
    )


def _unfused(
    path: str, module: nn.Module, base: GroupedExperts, layout: SourceLayout, eager: ExpertsFunction
) -> MoeBlock:
    """Experts whose own code runs between the products, and after them."""
    stored = {
        name: layout.transpose_to_row_major(name, getattr(module, attribute))
        for name, attribute in _weight_names(module).items()
    }

    def product(name: str) -> GroupedMatMul:
        _, out_features, in_features = stored[f"{name}_weight"].shape
        return GroupedMatMul(
            num_experts=base.num_experts,
            in_features=in_features,
            out_features=out_features,
            has_bias=base.has_bias,
        )

    experts = UnfusedHookedExperts(
        num_experts=base.num_experts,
        hidden_size=base.hidden_size,
        up=product("up"),
        down=product("down"),
        gated=base.gated,
        post_norm=bool(getattr(module, "has_post_expert_norm", False)),
    )
    experts = replace(experts, operators=inner_operators(experts, module))

    def lowered(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        inputs = _as_inputs(hidden_states, top_k_index, top_k_weights)
        tensors = {name: getattr(module, parameter_name(name)) for name in stored}
        y = experts.lower(module, inputs, tensors, path)
        return y if hidden_states.dim() == 2 else y.reshape(hidden_states.shape)

    block = MoeBlock(
        path=path,
        kind="experts hook",
        module=module,
        experts=experts,
        lowered=lowered,
        parameters={parameter_name(name): tensor for name, tensor in stored.items()},
        eager_experts=eager,
    )
    with bound([block]):
        proof = _prove(path, module, eager, lowered, base, "unfused experts")
    return replace(block, proof=proof)


def _refusal(path: str, module: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path or '<root>'} ({type(module).__name__}): {reason}")


def _as_inputs(x: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _as_rows(x), _as_rows(ids), _as_rows(weights).float()


def _as_rows(tensor: Tensor) -> Tensor:
    """``[..., N]`` to ``[T, N]``, without an operator where it is that already."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _is_tensor(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), Tensor)


def _weight_names(module: nn.Module) -> dict[str, str]:
    """Names of the module's stacked tensors by the op's input names."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    names = {"up_weight": up, "down_weight": "down_proj"}
    if module.has_bias:
        names |= {"up_bias": f"{up}_bias", "down_bias": "down_proj_bias"}
    return names


def _base_attributes(
    path: str, module: nn.Module, names: dict[str, str], layout: SourceLayout
) -> GroupedExperts:
    shapes = {
        name: layout.row_major_shape(name, getattr(module, stored).shape)
        for name, stored in names.items()
    }
    num_experts, hidden_size, intermediate_size = shapes["down_weight"]
    base = GroupedExperts(
        num_experts=num_experts,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        gated=bool(module.has_gate),
        has_bias=bool(module.has_bias),
    )
    try:
        one = {"x": (1, hidden_size), "expert_ids": (1, 1), "expert_weights": (1, 1)}
        base.check_shapes({**one, **shapes})
    except ContractError as error:
        raise _refusal(path, module, f"its weights have unexpected shapes: {error}") from error
    return base


def _fit(
    module: Any,  # noqa: ANN401 - its parts are checked by running them
    base: GroupedExperts,
    layout: SourceLayout,
) -> InnerFit:
    """The contract's nearest inner function to the module's."""

    def inner(projected: Tensor) -> Tensor:
        if not base.gated:
            result: Tensor = module.act_fn(projected)
            return result
        if layout.interleaved:
            projected = torch.stack(projected.chunk(2, dim=-1), dim=-1).flatten(-2)
        gated: Tensor = module._apply_gate(projected)
        return gated

    with torch.no_grad():
        return probe_inner(base, inner)


def _eager_forward(module: nn.Module) -> ExpertsFunction:
    """The class's own code, below transformers' choice of an implementation."""
    own: Any = getattr(type(module).forward, "__wrapped__", type(module).forward)

    def forward(x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = own(module, x, expert_ids.long(), expert_weights)
        return result

    return forward


def _prove(
    path: str,
    module: nn.Module,
    eager: ExpertsFunction,
    lowered: ExpertsFunction,
    experts: GroupedExperts,
    what: str,
) -> Proof:
    generator = torch.Generator().manual_seed(0)
    count, k = experts.num_experts, min(2, experts.num_experts)
    tokens = max(count, 8)
    x = torch.randn(tokens, experts.hidden_size, generator=generator)
    ids = (torch.arange(tokens)[:, None] + torch.arange(k) * max(1, count // 2)) % count
    weights = torch.rand(tokens, k, generator=generator) + 0.1
    with torch.no_grad():
        expected, found = eager(x, ids, weights), lowered(x, ids, weights)
    error = relative_error(found.numpy(), expected.numpy())
    if not error <= LAYER_TOLERANCE:
        raise _refusal(
            path,
            module,
            f"its eager code differs from the op contract by {error:.1e} of the largest output "
            f"(allowed {LAYER_TOLERANCE:.0e}) as {what}",
        )
    return Proof(tokens=(tokens,), experts_reached=count, max_error=error)
