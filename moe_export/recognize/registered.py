"""Layers that the user described with ``register_block``."""

from __future__ import annotations

import torch
from torch import nn

from moe_export.errors import ContractError, UnsupportedModelError, UsageError
from moe_export.recognize.block import MoeBlock, lowered_layer
from moe_export.recognize.layer_call import layer_input
from moe_export.recognize.proof import covering_rows, probe_inputs, prove_layer
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
    block = MoeBlock(
        path=path,
        kind="registered",
        module=module,
        experts=experts,
        gating=None,
        lowered=lowered_layer(module, path, description.route, experts, description.combine),
        parameters=description.tensors(),
        route=description.route,
        sums_experts=description.combine is None,
    )
    like = layer_input(where, module, record)
    rows = covering_rows(description.route, experts.num_experts, like)
    proved = prove_layer(block, probe_inputs(like, rows))
    if proved.proof is not None and proved.proof.experts_reached < experts.num_experts:
        raise UnsupportedModelError(
            f"{where}: probe inputs reach {proved.proof.experts_reached} of {experts.num_experts} "
            "experts, so that the description is not proved for the others"
        )
    return proved
