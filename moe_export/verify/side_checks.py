"""What is measured beside parity: batch coupling, and the checkpoint's own precision."""

from __future__ import annotations

from moe_export.errors import UnsupportedModelError
from moe_export.progress import Progress
from moe_export.runners.eager import EagerRunner
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.sources.model import LoadedModel, restore_dtypes, to_float32
from moe_export.tolerances import BATCH_COUPLING_TOLERANCE, relative_error
from moe_export.verify.cases import Sweep
from moe_export.verify.judge import output_error


def is_batch_coupled(sweep: Sweep, runner: OnnxRuntimeRunner) -> bool:
    """Whether a sample's result changes when others are in the batch.

    The batch is the symbolic first axis of the first input that has one. Samples are compared in
    every case: few tokens may not reach a capacity, and the first sample may come first in it.
    """
    symbol = next((s.shape[0] for s in runner.inputs if s.shape), None)
    shapes = [s for s in sweep.shapes() if s.padded is None and s.sizes.get(str(symbol), 0) >= 2]
    outputs = [s.name for s in runner.outputs if s.shape and s.shape[0] == symbol]
    batched = {s.name for s in runner.inputs if s.shape and s.shape[0] == symbol}
    for shape in shapes if outputs else []:
        inputs = sweep.draw(shape).inputs
        together = runner.run(inputs)
        for sample in (slice(0, 1), slice(-1, None)):
            alone = runner.run({n: a[sample] if n in batched else a for n, a in inputs.items()})
            errors = [relative_error(alone[name], together[name][sample]) for name in outputs]
            if not max(errors) <= BATCH_COUPLING_TOLERANCE:
                return True
    return False


def compare_source_dtype(
    loaded: LoadedModel, sweep: Sweep, runner: OnnxRuntimeRunner, progress: Progress
) -> tuple[str | None, float | None]:
    """Error against eager in the checkpoint's half precision: reported, not judged.

    Returns:
        The type's name and the largest error; None for what does not apply.
    """
    if not loaded.source_dtypes:
        return None, None
    dtype = next(iter(loaded.source_dtypes.values()))
    name = str(dtype).removeprefix("torch.")
    case = sweep.draw([s for s in sweep.shapes() if s.padded is None][-1])
    floats = [n for n, a in case.inputs.items() if a.dtype.kind == "f"]
    found = runner.run(case.inputs)
    restore_dtypes(loaded.model, loaded.source_dtypes)
    try:
        expected = EagerRunner(loaded.run, ()).run(case.inputs, dict.fromkeys(floats, dtype))
    except UnsupportedModelError as error:
        progress.remark(f"no comparison in {name}: eager does not run in it here ({error})")
        return name, None
    finally:
        to_float32(loaded.model)
    return name, max(output_error(case, found[n], expected[n]) for n in expected)
