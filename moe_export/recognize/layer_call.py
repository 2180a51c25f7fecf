"""How a layer is called in the model: one tensor in, one of the same shape out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.recorder import Recording


def layer_input(where: str, module: nn.Module, record: Recording) -> Tensor:
    """The tensor that the layer was called with in ``record``.

    Raises:
        UnsupportedModelError: the layer takes or gives something else than one float tensor
            ``[T, H]`` or ``[B, S, H]``.
    """
    name = f"{where} ({type(module).__name__})"
    calls = record.calls.get(module, [])
    if not calls:
        raise UnsupportedModelError(f"{name} does not run on the example inputs")
    call = calls[0]
    tensors = [
        t for t in torch.utils._pytree.tree_leaves((call.args, dict(call.kwargs)))
        if isinstance(t, Tensor)
    ]  # fmt: skip
    if len(tensors) != 1 or not call.args or call.args[0] is not tensors[0]:
        raise UnsupportedModelError(
            f"{name} is called with {len(tensors)} tensors; one positional tensor is expected"
        )
    x: Tensor = tensors[0]
    if not isinstance(call.result, Tensor):
        raise UnsupportedModelError(
            f"{name} returns a {type(call.result).__name__}; one tensor is expected. Outputs "
            "beside it, such as a loss, are not supported yet"
        )
    if not x.is_floating_point() or x.dim() not in (2, 3) or call.result.shape != x.shape:
        raise UnsupportedModelError(
            f"{name} maps {list(x.shape)} {x.dtype} to {list(call.result.shape)}; a float tensor "
            "[T, H] or [B, S, H] to one of the same shape is expected"
        )
    return x
