"""Stage 5: optimize the lowered graph, then give it what its target needs."""

from __future__ import annotations

import dataclasses

from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.lower.functions import attach_functions
from moe_export.lower.stage import LoweredModel
from moe_export.ops.contract import check_model
from moe_export.optimize.fuse_routers import fuse_routers
from moe_export.plan import BuildPlan
from moe_export.progress import Progress


def optimize(lowered: LoweredModel, plan: BuildPlan, progress: Progress) -> LoweredModel:
    """Fuse routers, drop what nothing uses any more, attach bodies where the target needs them.

    Args:
        lowered: Its graph is rewritten in place.
        plan: Gives the target.
        progress: Moves a bar.

    Returns:
        The model with what was found out about each layer's router.

    Raises:
        ContractError: a node breaks the contract.
    """
    layers = fuse_routers(lowered.model, lowered.layers, progress)
    RemoveUnusedNodesPass()(lowered.model)
    if plan.target == "portable":
        attach_functions(lowered.model)
    check_model(lowered.model)
    return dataclasses.replace(lowered, layers=layers)
