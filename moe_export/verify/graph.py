"""Parity of a graph for GPUs, on the CPU: what its lowering and its rounded weights compute.

The graph is run in float32, and eager with the same rounded weights, so that the tolerances of
float32 and exact routing hold. How a GPU's kernels round is left out: that takes the GPU.
"""

from __future__ import annotations

from pathlib import Path

from moe_export.capture.precision import round_weights
from moe_export.lower.stage import LoweredModel
from moe_export.lower.widen import widen
from moe_export.pack.model_file import EXACT_NAME, ROUNDED_NAME, PackedModel, pack
from moe_export.plan import BuildPlan
from moe_export.progress import Progress
from moe_export.runners.numbers import numbers_in_code
from moe_export.sources.model import LoadedModel
from moe_export.verify.quantization import measure_quantization, run_eager
from moe_export.verify.report import ParityReport
from moe_export.verify.stage import verify


def verify_graph(
    loaded: LoadedModel,
    lowered: LoweredModel,
    written: PackedModel,
    library: Path,
    plan: BuildPlan,
    progress: Progress,
) -> ParityReport:
    """Compare a graph for GPUs with eager PyTorch, both in float32.

    Args:
        loaded: The model in float32, its layers unbound.
        lowered: Its graph, experts' weights in float32.
        written: The graph as it was written, with the weights that the GPU reads.
        library: The op library for CPUs.
        plan: Gives the types, the seed and the ranges of the axes.
        progress: Told of every case.
    """
    blocks = [layer.block for layer in lowered.layers]
    with round_weights(loaded, blocks, plan.dtype or "fp32") as rounded:
        numbers = numbers_in_code(lambda: rounded.run(rounded.inputs))
        exact = pack(widen(lowered, numbers), written.folder, name=EXACT_NAME)
        report = verify(rounded, exact, plan, library, progress)
        if written.lowered is not lowered:
            stored = pack(widen(written.lowered, numbers), written.folder, name=ROUNDED_NAME)
            cases = run_eager(rounded, exact, plan, library)
            found = measure_quantization(
                exact, stored, library, cases, plan, progress, written=written
            )
            stored.remove()
            report = report.with_quantization(found)
        exact.remove()
    return report
