"""TensorRT here: whether it is installed, and whether it can run a bundle's engine."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from moe_export.errors import EnvironmentLacksError
from moe_export.runners import gpu
from moe_export.runners.device import DriverDevice
from moe_export.runners.engine import EngineRunner
from moe_export.runners.fingerprint import EngineFingerprint
from moe_export.runners.library import plugin_library_path

# Module of each flavor, and how to install it.
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
INSTALL = {
    "tensorrt-rtx": "pip install 'moe-export[tensorrt-rtx]' (package tensorrt-rtx-cu13)",
    "tensorrt": "pip install tensorrt polygraphy, from NVIDIA's package index",
}


def installed_version(flavor: str) -> str:
    """Version of TensorRT here.

    Args:
        flavor: ``tensorrt-rtx`` or ``tensorrt``.

    Raises:
        EnvironmentLacksError: it is not installed, or does not load.
    """
    try:
        module = importlib.import_module(MODULES[flavor])
    except (ImportError, OSError, RuntimeError) as error:
        raise EnvironmentLacksError(
            f"{flavor} cannot be imported ({error}): {INSTALL[flavor]}"
        ) from error
    return str(module.__version__)


def check_machine(fingerprint: EngineFingerprint) -> None:
    """Refuse an engine that was built for another TensorRT or GPU than are here.

    What is missing here is no mismatch: a bundle may be looked at anywhere.

    Raises:
        BundleError: names both sides.
    """
    try:
        fingerprint.check_version(installed_version(fingerprint.flavor))
    except EnvironmentLacksError:
        return
    if (found := gpu.compute_capability()) is not None:
        fingerprint.check_gpu(found)


def open_engine(
    folder: Path, fingerprint: EngineFingerprint, signature: Mapping[str, tuple[int | str, ...]]
) -> EngineRunner:
    """Open a bundle's engine for running, with the installed plugins.

    Args:
        folder: The bundle.
        fingerprint: What the engine was built with.
        signature: Shapes of inputs and outputs with their symbolic sizes, by name.

    Raises:
        BundleError: the engine is for another TensorRT or GPU.
        EnvironmentLacksError: TensorRT, a GPU or the plugins are missing.
    """
    fingerprint.check_version(installed_version(fingerprint.flavor))
    found = gpu.compute_capability()
    if found is None:
        raise EnvironmentLacksError(
            f"{folder} holds an engine for GPUs of compute capability "
            f"{', '.join(fingerprint.compute_capabilities)}; no GPU is found here"
        )
    fingerprint.check_gpu(found)
    return open_plan(folder / fingerprint.plan, fingerprint.flavor, signature)


def open_plan(
    plan: Path, flavor: str, signature: Mapping[str, tuple[int | str, ...]]
) -> EngineRunner:
    """Open an engine that was built for this machine.

    Args:
        plan: Its file.
        flavor: ``tensorrt-rtx`` or ``tensorrt``.
        signature: Shapes of inputs and outputs with their symbolic sizes, by name.
    """
    return EngineRunner(
        plan,
        importlib.import_module(MODULES[flavor]),
        plugin_library_path(),
        DriverDevice(),
        signature,
    )
