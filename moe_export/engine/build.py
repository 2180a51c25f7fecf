"""Build an engine in a process of its own, and say why where it fails."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_export.engine import worker
from moe_export.engine.environment import EngineEnvironment
from moe_export.errors import EnvironmentLacksError, MoeExportError, UnsupportedModelError
from moe_export.pack.native_moe import OP_TYPE
from moe_export.plan import BuildPlan
from moe_export.runners.fingerprint import Profile
from moe_export.runners.tensorrt import INSTALL, MODULES

_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class BuiltEngine:
    """What TensorRT said of an engine that it built.

    Attributes:
        version: Of TensorRT.
        plugins: Name and version of the plugin of each layer of the parsed network that is one, by
            the layer's name; TensorRT's own layers are none.
    """

    version: str
    plugins: Mapping[str, tuple[str, str]]


def build_engine(
    model: Path,
    plan_file: Path,
    plan: BuildPlan,
    environment: EngineEnvironment,
    profile: Profile,
    layers: Mapping[str, str],
) -> BuiltEngine:
    """Parse an ONNX file and build an engine of it.

    Args:
        model: The ONNX file, beside its data.
        plan_file: Where the engine goes.
        plan: Gives the target and its options.
        environment: Gives the plugins and the GPUs to build for.
        profile: Shapes that the engine takes; empty where no axis varies.
        layers: What the network has to have before it is built: by the name of a node, the plugin
            that it is, or ``TRT_MoE`` for TensorRT's own MoE layer.

    Raises:
        EnvironmentLacksError: TensorRT does not load, or does not take the plugins.
        UnsupportedModelError: TensorRT refuses the graph; says what its parser and the plugins say.
        MoeExportError: the process ended without an answer.
    """
    request = {
        "module": MODULES[plan.target],
        "flavor": plan.target,
        "library": str(environment.library),
        "model": str(model),
        "layers": dict(layers),
        "plan": str(plan_file),
        "profiles": [profile] if profile else [],
        "compute_capabilities": [] if environment.use_gpu else environment.compute_capabilities,
        "version_compatible": plan.version_compatible,
        "hardware_compatible": plan.hardware_compatible,
        "timing_cache": str(plan.timing_cache.absolute()) if plan.timing_cache else None,
    }
    with tempfile.TemporaryDirectory(prefix="moe-export.") as scratch:
        answer = _ask(request, Path(scratch), plan.target)
    if "failure" in answer:
        text = f"{plan.target}: {answer['text']}"
        if answer["failure"] == worker.LACKS:
            raise EnvironmentLacksError(f"{text}\n  {INSTALL[plan.target]}")
        raise UnsupportedModelError(f"{text}{_instead(layers)}")
    plugins = {name: (kind, version) for name, (kind, version) in answer["plugins"].items()}
    return BuiltEngine(answer["version"], plugins)


def _instead(layers: Mapping[str, str]) -> str:
    """What to try where TensorRT refuses a network with MoE layers of its own."""
    count = sum(kind == OP_TYPE for kind in layers.values())
    if not count:
        return ""
    return (
        f"\n  {count} layers are TensorRT's own MoE layer, which it builds for few forms and GPUs: "
        "--moe plugin takes this package's plugins"
    )


def _ask(request: dict[str, Any], scratch: Path, target: str) -> dict[str, Any]:
    asked, answered = scratch / "request.json", scratch / "answer.json"
    asked.write_text(json.dumps({**request, "answer": str(answered)}), encoding="utf-8")
    with _library_path(target, scratch) as variables:
        done = subprocess.run(
            [sys.executable, "-m", worker.__name__, str(asked)],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    if not answered.is_file():
        raise MoeExportError(
            f"{target}: the process that builds the engine ended with {done.returncode} and no "
            f"answer. The last that it said:\n{done.stdout[-_MOST_CHARACTERS:]}"
        )
    answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    return answer


@contextmanager
def _library_path(target: str, scratch: Path) -> Iterator[dict[str, str]]:
    """Environment variables of the process.

    TensorRT-RTX's parser opens ``libtensorrt_rtx.so``, and its package has ``.so.1`` alone.
    """
    if target != "tensorrt-rtx":
        yield {"POLYGRAPHY_USE_TENSORRT_RTX": "0"}
        return
    variables = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for folder in folders for path in Path(folder).glob("libtensorrt_rtx.so.*")]
    if found:
        links = scratch / "lib"
        links.mkdir()
        (links / "libtensorrt_rtx.so").symlink_to(found[0])
        paths = [str(links), os.environ.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    yield variables
