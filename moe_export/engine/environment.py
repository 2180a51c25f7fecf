"""What building an engine needs, checked before any work is done."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from moe_export.errors import EnvironmentLacksError, UsageError
from moe_export.plan import BuildPlan
from moe_export.runners import gpu
from moe_export.runners.library import plugin_library_path
from moe_export.runners.tensorrt import INSTALL, MODULES

# GPUs that TensorRT's own MoE layer exists on (NVIDIA, "MoE (Mixture of Experts)").
NATIVE_CAPABILITIES = ("10.0", "10.3", "11.0")


@dataclass(frozen=True)
class EngineEnvironment:
    """What an engine is built with.

    Attributes:
        library: This package's plugins.
        compute_capabilities: GPUs that the engine is for, such as ``8.9``.
        use_gpu: They were not named: the one of this machine is meant.
    """

    library: Path
    compute_capabilities: tuple[str, ...]
    use_gpu: bool


def find_environment(plan: BuildPlan) -> EngineEnvironment:
    """Find TensorRT, the plugins and the GPU to build for.

    Raises:
        EnvironmentLacksError: something is missing; says what to install.
        UsageError: the plugins have no kernels for a GPU that was named, or TensorRT's own MoE
            layer was asked for where there is none.
    """
    module = MODULES[plan.target]
    for name in (module, "polygraphy"):
        if importlib.util.find_spec(name) is None:
            raise EnvironmentLacksError(
                f"--target {plan.target} needs {name}, which is not installed: "
                f"{INSTALL[plan.target]}"
            )
    library = plugin_library_path()
    for capability in plan.compute_capabilities:
        if tuple(map(int, capability.split("."))) < gpu.LEAST_CAPABILITY:
            raise UsageError(
                f"--compute-capability {capability}: the plugins have kernels from "
                f"{'.'.join(map(str, gpu.LEAST_CAPABILITY))} on"
            )
    if plan.compute_capabilities:
        _check_native(plan, plan.compute_capabilities)
        return EngineEnvironment(library, plan.compute_capabilities, use_gpu=False)
    found = gpu.compute_capability()
    if found is None:
        instead = (
            "say which GPUs the engine is for, as in --compute-capability 8.9"
            if plan.target == "tensorrt-rtx"
            else "TensorRT builds for the GPU that it times kernels on; --target tensorrt-rtx "
            "builds without one"
        )
        raise EnvironmentLacksError(f"--target {plan.target}: no GPU is found here; {instead}")
    _check_native(plan, (found,))
    return EngineEnvironment(library, (found,), use_gpu=True)


def _check_native(plan: BuildPlan, capabilities: tuple[str, ...]) -> None:
    lacking = [c for c in capabilities if c not in NATIVE_CAPABILITIES]
    if plan.moe == "native" and lacking:
        raise UsageError(
            f"--moe native: TensorRT's own MoE layer exists on GPUs of compute capability "
            f"{', '.join(NATIVE_CAPABILITIES)}; the engine is for {', '.join(lacking)}. Take --moe "
            "plugin"
        )
