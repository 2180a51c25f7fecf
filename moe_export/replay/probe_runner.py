"""Run a probe where its bundle runs: in a session, or in an engine of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from moe_export.package.bundle import MODEL_NAME, Bundle
from moe_export.replay.probe import Probe
from moe_export.runners.arrays import Array
from moe_export.runners.engine import EngineRunner
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.runners.tensorrt import open_plan


def open_probe(
    bundle: Bundle, probe: Probe, inputs: Mapping[str, Array]
) -> OnnxRuntimeRunner | EngineRunner:
    """Open a probe of a bundle.

    Args:
        bundle: The bundle.
        probe: Its graph with more outputs.
        inputs: What it is to run on; an engine takes these shapes alone.

    Raises:
        EnvironmentLacksError: a package, a GPU or TensorRT is missing.
        UnsupportedModelError: TensorRT refuses the graph.
    """
    engine = bundle.manifest.engine
    if engine is None:
        return bundle.open_graph(probe.to_bytes())
    with tempfile.TemporaryDirectory(prefix="moe-export.") as scratch:
        return _open_engine(bundle.folder, engine, probe, inputs, Path(scratch))


def _open_engine(
    folder: Path,
    engine: EngineFingerprint,
    probe: Probe,
    inputs: Mapping[str, Array],
    scratch: Path,
) -> EngineRunner:
    """An engine that is built here and now; outputs keep TensorRT from fusing across them."""
    from moe_export.engine.build import build_engine
    from moe_export.engine.environment import find_environment
    from moe_export.plan import BuildPlan, engine_target

    for data in folder.glob(f"{MODEL_NAME}.data"):
        (scratch / data.name).symlink_to(data.absolute())
    (scratch / MODEL_NAME).write_bytes(probe.to_bytes())
    shapes = {name: array.shape for name, array in inputs.items()}
    profile = {
        str(value.name): (shapes[str(value.name)],) * 3
        for value in probe.model.graph.inputs
        if value.shape is not None and not value.shape.is_static()
    }
    plan = BuildPlan(output=scratch, target=engine_target(engine.flavor))
    plan_file = scratch / "probe.plan"
    build_engine(scratch / MODEL_NAME, plan_file, plan, find_environment(plan), profile, layers={})
    return open_plan(plan_file, engine.flavor, {})
