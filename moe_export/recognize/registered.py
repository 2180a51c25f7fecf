"""Layers that the user described with ``register_block``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.errors import ContractError, UnsupportedModelError, UsageError
from moe_export.ops import torch_ops
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.block import MoeBlock, parameter_name
from moe_export.recognize.layer_call import LayerCall, find_layer_call
from moe_export.recognize.probes import Probes
from moe_export.recognize.proof import prove_layer
from moe_export.recognize.recorder import Recording
from moe_export.recognize.registry import BlockDescription, Describe


def recognize_registered(
    path: str, module: nn.Module, describe: Describe, record: Recording
) -> MoeBlock:
    """Build the block that a user's description says, and prove it on every expert.

    Raises:
        UsageError: the function returned no description.
        UnsupportedModelError: the description differs from eager, or an expert is not reached.
    """
    where = path or "<root>"
    try:
        with torch.no_grad():
            description = describe(module)
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(
            f"{where}: the function registered for {type(module).__name__} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(description, BlockDescription):
        raise UsageError(
            f"{where}: the function registered for {type(module).__name__} must return a "
            f"BlockDescription; found {type(description).__name__}"
        )
    try:
        experts = description.attributes()
    except ContractError as error:
        raise ContractError(f"{where}: {error}") from error
    call = find_layer_call(path, module, record)
    if len(call.tensors) != 1:
        raise UnsupportedModelError(
            f"{call.where} is called with {len(call.tensors)} tensors; a described layer takes one"
        )

    def route(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        (x,) = call.pick(args, kwargs)
        return description.route(x.reshape(-1, x.shape[-1]))

    block = MoeBlock(
        path=path,
        kind="registered",
        module=module,
        experts=experts,
        lowered=_lowered_layer(call, path, description, experts),
        parameters={parameter_name(n): t for n, t in description.tensors().items()},
        route=route,
        sums_experts=description.combine is None,
    )
    proved = prove_layer(block, call, Probes(call))
    if proved.proof is not None and proved.proof.experts_reached < experts.num_experts:
        raise UnsupportedModelError(
            f"{where}: probe inputs reach {proved.proof.experts_reached} of {experts.num_experts} "
            "experts, so that the description is not proved for the others"
        )
    return proved


def _lowered_layer(
    call: LayerCall, path: str, description: BlockDescription, experts: GroupedExperts
) -> Callable[..., Tensor]:
    """The lowered form of a layer ``[..., H] -> [..., H]`` that was described."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - whatever eager passes
        (x,) = call.pick(args, kwargs)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        ids, weights = description.route(rows)
        names = [parameter_name(name) for name in experts.input_names()[3:]]
        stacked = [getattr(call.module, name) for name in names]
        y = torch_ops.grouped_experts([rows, ids, weights, *stacked], experts, path=path)
        out = y if description.combine is None else description.combine(rows, y)
        return out if x.dim() == 2 else out.reshape(x.shape)

    return forward
