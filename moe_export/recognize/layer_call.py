"""How a layer is called in the model: one tensor in, one of the same shape out."""

from __future__ import annotations

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
    given = [value for value in (*call.args, *call.kwargs.values()) if value is not None]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        kinds = ", ".join(type(value).__name__ for value in given)
        raise UnsupportedModelError(f"{name} is called with ({kinds}); one tensor is expected")
    x = given[0]
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
