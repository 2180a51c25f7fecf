"""Where ONNX Runtime runs a model: on the CPU, or on a GPU and nowhere else.

ONNX Runtime falls back to the CPU where its CUDA provider does not start. A bundle for GPUs does
not: it is refused, with what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moe_export.errors import EnvironmentLacksError
from moe_export.runners import gpu
from moe_export.runners.library import gpu_library_path

DeviceKind = Literal["cpu", "cuda"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# Float32 is float32: ONNX Runtime would take TF32, which has 10 bits. The CPU's provider is for
# what computes shapes, which CUDA's leaves to it.
PROVIDERS: Mapping[DeviceKind, list[str | tuple[str, dict[str, str]]]] = {
    "cpu": [_CPU],
    "cuda": [(_CUDA, {"use_tf32": "0"}), _CPU],
}
_INSTALL = "pip uninstall onnxruntime, then pip install 'moe-export[gpu]'"


def check_gpu(onnxruntime: Any) -> None:  # noqa: ANN401 - the module
    """Refuse a machine that cannot run a bundle for GPUs.

    Args:
        onnxruntime: The module.

    Raises:
        EnvironmentLacksError: says what is missing.
    """
    gpu_library_path()
    found = gpu.compute_capability()
    if found is None:
        raise EnvironmentLacksError(
            "the bundle runs on a GPU, and no GPU is found here (nvidia-smi lists them); build "
            "with --target cpu for this machine"
        )
    if tuple(map(int, found.split("."))) < gpu.LEAST_CAPABILITY:
        least = ".".join(map(str, gpu.LEAST_CAPABILITY))
        raise EnvironmentLacksError(
            f"the bundle runs on GPUs of compute capability {least} or later; the one here has "
            f"{found}"
        )
    if _CUDA not in onnxruntime.get_available_providers():
        raise EnvironmentLacksError(
            f"the bundle needs ONNX Runtime with CUDA; onnxruntime {onnxruntime.__version__} here "
            f"is without: {_INSTALL}"
        )
    if hasattr(onnxruntime, "preload_dlls"):  # finds CUDA and cuDNN in NVIDIA's Python packages
        onnxruntime.preload_dlls()


def check_provider(session: Any, device: DeviceKind) -> None:  # noqa: ANN401 - of onnxruntime
    """Refuse a session that ONNX Runtime put elsewhere than asked.

    Raises:
        EnvironmentLacksError: its CUDA provider did not start.
    """
    if device == "cuda" and _CUDA not in session.get_providers():
        raise EnvironmentLacksError(
            "ONNX Runtime could not start its CUDA provider, which needs the CUDA and cuDNN "
            "libraries of its version: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
