"""All layers of a model that cannot be lowered, in one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_export.recognize.stage import Recognition, Refusal

if TYPE_CHECKING:
    from torch import nn

_HOW = "Describe a refused layer with moe_export.register_block (README, 'A layer of your own')."


def list_refusals(model: nn.Module, recognition: Recognition) -> str:
    """Every refused layer with its class, what was tried and how near it came, and the others.

    Args:
        model: The model.
        recognition: What was found in it; at least one layer is refused.
    """
    refused, found = recognition.refusals, [block.path for block in recognition.blocks]
    num_layers = len(refused) + len(found)
    parts = [f"{len(refused)} of {num_layers} MoE layers cannot be lowered"]
    parts += [explain_refusal(model, refusal) for refusal in refused]
    parts.append(f"recognized: {_paths(found)}" if found else "no other layer was found")
    if not all("register_block" in refusal.reason for refusal in refused):
        parts.append(_HOW)
    return "\n\n".join(parts)


def explain_refusal(model: nn.Module, refusal: Refusal) -> str:
    """The reason, which begins with the layer's path and class."""
    module = type(model.get_submodule(refusal.path)).__name__
    path = refusal.path or "<root>"
    if refusal.reason.startswith((f"{path} ", f"{path}:")) and module in refusal.reason:
        return refusal.reason
    return f"{path} ({module}): {refusal.reason}"


def _paths(paths: Sequence[str]) -> str:
    return ", ".join(path or "<root>" for path in paths)
