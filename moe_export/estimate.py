"""What a build would take: bytes on disk, memory and time, from what a dry run measured.

- Size: the graph's tensors and nodes, the op library, the example. Reports are left out.
- Time: what the dry run took; then the files at the rate at which a few megabytes were written
  and hashed; then the comparison, whose cases run in eager and in the exported model, each taken
  to last as long as eager on the largest case. So it is rather too long than too short.
- Memory: what the process holds after the dry run, the weights once more for the session that
  runs the exported model, and a layer's for the one that runs its experts alone; at least the dry
  run's own peak.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from moe_export.lower.stage import LoweredModel
from moe_export.pack.model_file import INLINE_BYTES, PACKED_LAYOUTS, PAGE_BYTES
from moe_export.pack.packed_weights import pack_weights
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress, peak_memory
from moe_export.quantize.stage import quantize
from moe_export.runners.eager import EagerRunner
from moe_export.sources.model import LoadedModel
from moe_export.verify.cases import InputShape
from moe_export.verify.steps import make_sweep

_TRIAL_BYTES = 16 << 20


@dataclass(frozen=True)
class Estimate:
    """An estimate of a build.

    Attributes:
        weights_bytes: Tensors on disk.
        graph_bytes: The graph without its tensors.
        library_bytes: The libraries.
        example_bytes: Example inputs and eager's outputs.
        peak_bytes: Largest resident memory of the process.
        measured_s: Stages that the dry run went through, in seconds.
        write_s: Writing and hashing the files.
        verify_s: The comparison with eager; 0 where it is skipped.
        engine_bytes: An engine, which holds the weights again; how long TensorRT takes is not
            estimated.
    """

    weights_bytes: int
    graph_bytes: int
    library_bytes: int
    example_bytes: int
    peak_bytes: int
    measured_s: float
    write_s: float
    verify_s: float
    engine_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """The bundle on disk."""
        graph = self.weights_bytes + self.graph_bytes
        return graph + self.library_bytes + self.example_bytes + self.engine_bytes

    @property
    def total_s(self) -> float:
        """The whole build, in seconds."""
        return self.measured_s + self.write_s + self.verify_s

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"size_bytes": self.size_bytes, "total_s": self.total_s, **asdict(self)}


def estimate_build(
    loaded: LoadedModel,
    lowered: LoweredModel,
    plan: BuildPlan,
    libraries: Sequence[Path],
    measured_s: float,
) -> Estimate:
    """Estimate the build of a model that a dry run has lowered.

    Args:
        loaded: The model.
        lowered: Its graph.
        plan: What the build is asked for.
        libraries: Those that are copied into the bundle.
        measured_s: Seconds that the dry run's stages took.
    """
    weights_bytes = _tensor_bytes(lowered, plan)
    graph_bytes = _graph_bytes(lowered)
    library_bytes = sum(path.stat().st_size for path in libraries)
    example = [*loaded.inputs.values(), *loaded.run(loaded.inputs).values()]
    example_bytes = sum(t.numel() * t.element_size() for t in example)
    engine_bytes = weights_bytes if plan.builds_engine else 0
    to_write = weights_bytes + graph_bytes + library_bytes + example_bytes + engine_bytes
    verify_s = _verify_seconds(loaded, lowered, plan) if plan.verify else 0.0
    mapped_bytes = weights_bytes + weights_bytes // len(lowered.layers)
    return Estimate(
        weights_bytes=weights_bytes,
        graph_bytes=graph_bytes,
        library_bytes=library_bytes,
        example_bytes=example_bytes,
        peak_bytes=max(peak_memory(), _resident_bytes() + mapped_bytes),
        measured_s=measured_s,
        write_s=to_write * _seconds_per_byte(plan.output.absolute().parent),
        verify_s=verify_s,
        engine_bytes=engine_bytes,
    )


def _tensor_bytes(lowered: LoweredModel, plan: BuildPlan) -> int:
    """Bytes of every stored tensor as the plan has it written, each on a page of its own."""
    graph = quantize(lowered, plan, SilentProgress()).model
    if layout := PACKED_LAYOUTS.get(plan.target):
        graph = pack_weights(graph, layout)
    sizes = [
        value.const_value.nbytes
        for part in graph.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    ]
    return sum(s if s <= INLINE_BYTES else -(-s // PAGE_BYTES) * PAGE_BYTES for s in sizes)


def _graph_bytes(lowered: LoweredModel) -> int:
    """Bytes of the nodes, their values' types and functions' bodies, as they are written."""
    graphs = list(lowered.model.graphs())
    nodes = [node for graph in graphs for node in graph]
    values = [v for n in nodes for v in n.outputs] + [
        v for graph in graphs for v in graph.initializers.values()
    ]
    functions = lowered.model.functions.values()
    written = [
        *map(ir.serde.serialize_node, nodes),
        *map(ir.serde.serialize_value, values),
        *map(ir.serde.serialize_function, functions),
    ]
    layers = sum(len(json.dumps(layer.describe())) for layer in lowered.layers)
    return layers + sum(int(message.ByteSize()) for message in written)


def _verify_seconds(loaded: LoadedModel, lowered: LoweredModel, plan: BuildPlan) -> float:
    """Every case twice, and each layer's experts alone as long as one more case."""
    inputs = []
    for value in lowered.model.graph.inputs:
        assert value.shape is not None  # exported inputs have shapes and names
        assert value.name
        sizes = tuple(s if isinstance(s, int) else str(s.value) for s in value.shape)
        example, num_values = loaded.inputs[value.name].numpy(), loaded.integer_ranges.get
        inputs.append(InputShape(value.name, sizes, example, num_values(value.name)))
    sweep = make_sweep(loaded, tuple(inputs), plan)
    shapes = list(sweep.shapes())
    largest = max(shapes, key=lambda shape: math.prod(shape.sizes.values()))
    eager = EagerRunner(loaded.run, ())
    began = time.monotonic()
    eager.run(sweep.draw(largest).inputs)
    return 2 * (len(shapes) + 1) * (time.monotonic() - began)


def _seconds_per_byte(folder: Path) -> float:
    """Writes to an unnamed file, which is gone when it is closed, and hashes what was written."""
    data = np.random.default_rng(0).bytes(_TRIAL_BYTES)
    writable = folder.is_dir() and os.access(folder, os.W_OK)
    began = time.monotonic()
    with tempfile.TemporaryFile(dir=folder if writable else None) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    hashlib.sha256(data).digest()
    return (time.monotonic() - began) / _TRIAL_BYTES


def _resident_bytes() -> int:
    """Resident memory now; the peak where the system does not tell."""
    path = Path("/proc/self/statm")
    if not path.is_file():
        return peak_memory()
    return int(path.read_text().split()[1]) * resource.getpagesize()
