"""Stage 7b: an engine of the packed graph, with every MoE layer in a plugin or TensorRT's own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moe_export.engine.build import build_engine
from moe_export.engine.environment import EngineEnvironment
from moe_export.engine.moe_choice import describe_choice
from moe_export.engine.profile import (
    GraphInput,
    describe_ranges,
    find_ranges,
    make_profile,
    spell_totals,
)
from moe_export.ops.nodes import moe_nodes
from moe_export.pack.model_file import PackedModel
from moe_export.pack.native_moe import native_nodes
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import hash_file

PLAN_NAME = "engine/model.plan"


def make_engine(
    packed: PackedModel,
    inputs: Sequence[GraphInput],
    plan: BuildPlan,
    environment: EngineEnvironment,
    progress: Progress,
    *,
    example_given: bool,
) -> EngineFingerprint:
    """Build the engine into the bundle's folder.

    Args:
        packed: The written graph.
        inputs: Its inputs, with the example's shapes.
        plan: Gives the target and its options.
        environment: What it is built with.
        progress: Told which shapes the engine takes, and what became of the layers.
        example_given: The example's sizes are what the engine is to be best at.

    Raises:
        UnsupportedModelError: TensorRT refuses the graph, or runs a layer in other ways than by a
            plugin or its own MoE layer.
        EnvironmentLacksError: TensorRT or the plugins do not load.
    """
    inputs = spell_totals(inputs)
    ranges = find_ranges(inputs, plan.dynamic, example_given=example_given)
    if ranges:
        progress.remark(describe_ranges(ranges))
    if choice := describe_choice(plan, environment, len(packed.lowered.layers)):
        progress.remark(choice)
    profile = make_profile(inputs, ranges)
    plan_file, layers = packed.folder / PLAN_NAME, moe_layers(packed.graph)
    plan_file.parent.mkdir()
    built = build_engine(packed.path, plan_file, plan, environment, profile, layers)
    return EngineFingerprint(
        plan=PLAN_NAME,
        flavor=plan.target,
        version=built.version,
        compute_capabilities=environment.compute_capabilities,
        plugins=dict(sorted(set(built.plugins.values()))),
        plugin_library_sha256=hash_file(environment.library),
        profiles=(profile,) if profile else (),
        dtype=plan.dtype or "fp32",
        version_compatible=plan.version_compatible,
        hardware_compatible=plan.hardware_compatible,
    )


def graph_inputs(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> tuple[GraphInput, ...]:
    """A graph's inputs.

    Args:
        model: The graph.
        shapes: The example's shapes by input name.
    """
    found = []
    for value in model.graph.inputs:
        assert value.name  # exported inputs have names and shapes
        assert value.shape is not None
        sizes = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        found.append(GraphInput(value.name, sizes, shapes[value.name]))
    return tuple(found)


def moe_layers(graph: ir.Model) -> dict[str, str]:
    """What every MoE node of a graph has to be in the parsed network, by its name."""
    nodes = [*moe_nodes(graph), *native_nodes(graph)]
    return {str(node.name): node.op_type for node in nodes}
