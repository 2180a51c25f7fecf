"""Compare a bundle with what eager PyTorch did on its example, where the bundle runs.

Three bounds, from loose to strict: the whole model's outputs may be off by twice what eager in the
bundle's type is off by; few tokens may go to other experts than in float32; and each custom node,
on what it itself read, must agree with the reference to the rounding of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from moe_export.errors import EnvironmentLacksError
from moe_export.package.bundle import Bundle
from moe_export.replay.report import LayerResult, NodeResult, OutputResult, ReplayReport
from moe_export.runners.arrays import Array, read_arrays
from moe_export.tolerances import GPU_TOLERANCES, relative_rms
from moe_export.verify.compare import compare_routing
from moe_export.verify.example_record import EXAMPLE_FOLDER, ExampleRecord, read_record, routing_key

# The first run of an engine is plain, the second records a CUDA graph, the third replays it.
_RUNS = 3


class Runner(Protocol):
    """What runs a graph."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by output name."""


def replay(bundle: Bundle) -> ReplayReport:
    """Run a bundle's example here and compare.

    Raises:
        UsageError: the bundle was built without the comparison.
        EnvironmentLacksError: a package, a GPU or TensorRT is missing.
    """
    record, routing = read_record(bundle.folder)
    folder = bundle.folder / EXAMPLE_FOLDER
    inputs, expected = (read_arrays(folder / f"{name}.npz") for name in ("inputs", "expected"))
    runs = [bundle.run(inputs) for _ in range(_RUNS)]
    try:
        from moe_export.replay.node_check import check_node
        from moe_export.replay.probe import make_probe
        from moe_export.replay.probe_runner import open_probe
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            f"looking into the graph needs {error.name}: pip install onnx-ir"
        ) from error
    probe = make_probe(bundle.folder / "model.onnx")
    shown = open_probe(bundle, probe, inputs).run(inputs)
    seen = {**inputs, **{name: shown[output] for name, output in probe.outputs.items()}}
    allowed = GPU_TOLERANCES[record.dtype]
    return ReplayReport(
        device=bundle.device_name,
        runs=_RUNS,
        repeatable=all(_same(runs[0], other) for other in runs[1:]),
        outputs=_outputs(record, runs[-1], expected),
        layers=_layers(record, seen, routing),
        nodes=tuple(
            NodeResult(str(node.name), node.op_type, check_node(node, seen), allowed)
            for node in probe.nodes
        ),
    )


def _same(first: Mapping[str, Array], second: Mapping[str, Array]) -> bool:
    return all(
        np.array_equal(a, second[n], equal_nan=a.dtype.kind == "f") for n, a in first.items()
    )


def _outputs(
    record: ExampleRecord, found: Mapping[str, Array], expected: Mapping[str, Array]
) -> tuple[OutputResult, ...]:
    return tuple(
        OutputResult(
            name, relative_rms(found[name], expected[name]), allowed, record.eager_rms.get(name)
        )
        for name, allowed in record.allowed_rms.items()
    )


def _layers(
    record: ExampleRecord, seen: Mapping[str, Array], routing: Mapping[str, Array]
) -> tuple[LayerResult, ...]:
    results = []
    for number, layer in enumerate(record.layers):
        ids, weights, margin = (
            routing[routing_key(number, part)]
            for part in ("expert_ids", "expert_weights", "margin")
        )
        found = compare_routing(
            seen[layer.expert_ids],
            seen[layer.expert_weights],
            ids,
            weights,
            margin,
            layer.num_experts,
        )
        rerouted = int((found.disagreeing | found.tied).sum())
        results.append(LayerResult(layer.path, len(ids), rerouted, layer.allowed_rerouted))
    return tuple(results)
