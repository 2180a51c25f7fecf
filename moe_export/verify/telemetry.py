"""Check what telemetry counts against the routing that is itself compared with eager's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moe_export.lower.stage import LoweredLayer
from moe_export.runners.arrays import Array
from moe_export.telemetry.expert_load import ExpertLoad
from moe_export.telemetry.record import TOKENS, LayerTelemetry
from moe_export.tolerances import ROUTING_WEIGHT_TOLERANCE


def telemetry_failures(
    records: Sequence[LayerTelemetry],
    layers: Sequence[LoweredLayer],
    found: Mapping[str, Array],
) -> Iterator[str]:
    """Say which layer's telemetry contradicts its expert ids.

    Args:
        records: The outputs that count.
        layers: The layers, whose ids are outputs too.
        found: Outputs of one run.
    """
    by_path = {layer.path: layer for layer in layers}
    for record in records:
        layer, load = by_path[record.path], ExpertLoad.read(record, found)
        ids, num_experts = found[layer.expert_ids], layer.block.experts.num_experts
        valid = (ids >= 0) & (ids < num_experts)
        where = f"telemetry of {record.path or '<root>'}"
        counts = np.bincount(ids[valid], minlength=num_experts)
        if not np.array_equal(load.tokens_per_expert, counts):
            yield f"{where}: {record.tokens_per_expert} is not what the layer's ids say"
        lost = ~valid.any(axis=1) if record.dropped == TOKENS else ~valid
        if load.dropped_tokens != int(lost.sum()):
            yield (
                f"{where}: {record.dropped_tokens} is {load.dropped_tokens}; its ids say "
                f"{int(lost.sum())}"
            )
        mass = float(load.mean_probability.sum(dtype=np.float64))
        # A token whose scores are NaN, as padding may have, makes the mean NaN, rightly.
        if load.mean_probability.min() < 0 or mass > 1 + ROUTING_WEIGHT_TOLERANCE:
            yield f"{where}: {record.mean_probability} is no mean of distributions (sum {mass:.3g})"
