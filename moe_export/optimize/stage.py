"""Stage 5: optimize the lowered graph, then give it what the plan asks for."""

from __future__ import annotations

import dataclasses

from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.lower.functions import attach_functions
from moe_export.lower.stage import LoweredModel
from moe_export.ops.contract import check_model
from moe_export.optimize.fuse_routers import fuse_routers
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.telemetry.outputs import add_telemetry


def optimize(lowered: LoweredModel, plan: BuildPlan, progress: Progress) -> LoweredModel:
    """Fuse routers, drop what nothing uses, add telemetry, attach bodies for the target.

    Args:
        lowered: Its graph is rewritten in place.
        plan: Gives the target, and whether telemetry is wanted.
        progress: Moves a bar.

    Returns:
        The model with what was found out about each layer's router.

    Raises:
        ContractError: a node breaks the contract.
        UsageError: telemetry would name an output as the model names one.
    """
    layers = fuse_routers(lowered.model, lowered.layers, progress)
    RemoveUnusedNodesPass()(lowered.model)
    telemetry = add_telemetry(lowered.model) if plan.telemetry else ()
    if plan.target == "portable":
        attach_functions(lowered.model)
    check_model(lowered.model)
    return dataclasses.replace(lowered, layers=layers, telemetry=telemetry)
