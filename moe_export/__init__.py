"""moe-export: make PyTorch Mixture-of-Experts models run fast without PyTorch.

``load`` and what it returns never import torch; ``build`` and ``register_block`` do.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_export.ops.spec import TopKGating
    from moe_export.ops.torch_ops import top_k_gating
    from moe_export.package.bundle import Bundle, load
    from moe_export.pipeline import build
    from moe_export.recognize.registry import BlockDescription, register_block

__version__ = metadata.version("moe-export")

_HOMES = {
    "BlockDescription": "moe_export.recognize.registry",
    "Bundle": "moe_export.package.bundle",
    "TopKGating": "moe_export.ops.spec",
    "build": "moe_export.pipeline",
    "load": "moe_export.package.bundle",
    "register_block": "moe_export.recognize.registry",
    "top_k_gating": "moe_export.ops.torch_ops",
}

__all__ = [
    "BlockDescription",
    "Bundle",
    "TopKGating",
    "build",
    "load",
    "register_block",
    "top_k_gating",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name not in _HOMES:
        raise AttributeError(f"module 'moe_export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
