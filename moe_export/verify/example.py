"""What eager does on the example, in float32 and in the bundle's type, for later comparisons.

Half precision moves outputs and sends tokens elsewhere, in eager too. How far it moves eager is the
yardstick for what a GPU computes: it may be off by twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from moe_export.capture.precision import run_in
from moe_export.errors import UnsupportedModelError
from moe_export.lower.stage import LoweredLayer
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.arrays import Array
from moe_export.runners.eager import EagerRunner, LayerTrace, Trace
from moe_export.sources.model import LoadedModel
from moe_export.tolerances import (
    EXAMPLE_FACTOR,
    EXAMPLE_FLOORS,
    EXAMPLE_REROUTED_SHARE,
    EXAMPLE_RMS_WITHOUT_YARDSTICK,
    TIE_TOLERANCE,
    relative_rms,
)
from moe_export.verify.example_record import ExampleRecord, RecordedLayer, routing_key
from moe_export.verify.quantization_report import QuantizationReport
from moe_export.verify.report import ParityReport


def record_example(
    loaded: LoadedModel,
    layers: Sequence[LoweredLayer],
    plan: BuildPlan,
    report: ParityReport,
    progress: Progress,
) -> tuple[ExampleRecord, dict[str, Array]]:
    """Run eager on the example, and say what may differ from it.

    Args:
        loaded: The model in float32, its layers unbound.
        layers: In the order they run.
        plan: Gives the type of the activations.
        report: Gives what rounded weights cost.
        progress: Told where eager does not run in that type.

    Returns:
        The record, and eager's routing in float32 by ``routing_key``.
    """
    dtype = plan.dtype or "fp32"
    eager = EagerRunner(loaded.run, [layer.block for layer in layers])
    exact = eager.trace({name: tensor.numpy() for name, tensor in loaded.inputs.items()})
    rounded = _trace_in(loaded, layers, plan, progress) if dtype != "fp32" else None
    measured = _rms(rounded.outputs, exact.outputs) if rounded else {}
    # What is beyond the type's range, as in float16, is no yardstick.
    eager_rms = {name: rms for name, rms in measured.items() if math.isfinite(rms)}
    record = ExampleRecord(
        dtype=dtype,
        eager_rms=eager_rms,
        allowed_rms=_allowed_rms(exact.outputs, eager_rms, dtype, report.quantization),
        layers=tuple(
            RecordedLayer(
                layer.path,
                layer.expert_ids,
                layer.expert_weights,
                layer.block.experts.num_experts,
                _allowed_rerouted(layer.path, exact, rounded, dtype, report.quantization),
            )
            for layer in layers
        ),
    )
    routing = {}
    for number, layer in enumerate(layers):
        trace = exact.layers[layer.path]
        routing[routing_key(number, "expert_ids")] = trace.expert_ids
        routing[routing_key(number, "expert_weights")] = trace.expert_weights
        routing[routing_key(number, "margin")] = trace.margin
    return record, routing


def _trace_in(
    loaded: LoadedModel, layers: Sequence[LoweredLayer], plan: BuildPlan, progress: Progress
) -> Trace | None:
    """Eager in the bundle's type; None where it does not run in it."""
    try:
        with run_in(loaded, plan.dtype or "fp32") as run:
            eager = EagerRunner(run, [layer.block for layer in layers])
            return eager.trace({name: t.numpy() for name, t in loaded.inputs.items()})
    except (UnsupportedModelError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        progress.remark(
            f"eager does not run in {plan.dtype} here ({reason}): what a GPU may be off by is a "
            "bound for the type, not a measured one"
        )
        return None


def _rms(found: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, float]:
    floats = {n: v for n, v in expected.items() if np.issubdtype(v.dtype, np.floating)}
    return {name: relative_rms(found[name], values) for name, values in floats.items()}


def _allowed_rms(
    outputs: Mapping[str, Array],
    eager_rms: Mapping[str, float],
    dtype: str,
    quantization: QuantizationReport | None,
) -> dict[str, float]:
    allowed = {}
    costs = quantization.outputs if quantization else {}
    for name, values in outputs.items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        measured = 0.0 if dtype == "fp32" else EXAMPLE_RMS_WITHOUT_YARDSTICK[dtype]
        rounding = eager_rms.get(name, measured)
        weights = costs[name].rms if name in costs else 0.0
        weights = weights if math.isfinite(weights) else 0.0  # parity has failed by then
        allowed[name] = EXAMPLE_FACTOR * math.hypot(rounding, weights) + EXAMPLE_FLOORS[dtype]
    return allowed


def _allowed_rerouted(
    path: str,
    exact: Trace,
    rounded: Trace | None,
    dtype: str,
    quantization: QuantizationReport | None,
) -> int:
    expected = exact.layers[path]
    tokens = len(expected.expert_ids)
    expected_count = 0.0 if rounded is None else count_rerouted(rounded.layers[path], expected)
    for layer in quantization.layers if quantization else ():
        if layer.path == path and layer.tokens:
            expected_count += tokens * layer.rerouted / layer.tokens
    if dtype == "fp32":
        spare = float((expected.margin <= TIE_TOLERANCE).sum())
    else:
        spare = max(1.0, EXAMPLE_REROUTED_SHARE * tokens)
    return min(tokens, math.ceil(EXAMPLE_FACTOR * expected_count + spare))


def count_rerouted(found: LayerTrace, expected: LayerTrace) -> int:
    """Tokens that go to other experts."""
    ids = [np.sort(trace.expert_ids, axis=1) for trace in (found, expected)]
    return int((ids[0] != ids[1]).any(axis=1).sum())
