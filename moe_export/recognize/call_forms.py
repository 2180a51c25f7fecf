"""A layer that is called in several ways, such as with a mask and without, each on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import MoeBlock
from moe_export.recognize.layer_call import LayerCall
from moe_export.recognize.program import same_tensor


def join_forms(calls: Sequence[LayerCall], blocks: Sequence[MoeBlock]) -> MoeBlock:
    """One block that takes each call as the block of its form does.

    Args:
        calls: How the layer is called; the first speaks for the layer.
        blocks: What was recognized for each.

    Raises:
        UnsupportedModelError: the forms do not have the same experts, or need different constants.
    """
    first = blocks[0]
    if len(blocks) == 1:
        return first
    where = calls[0].where
    if any(block.experts != first.experts for block in blocks):
        raise UnsupportedModelError(f"{where} is called in several ways, each with other experts")
    parameters: dict[str, Tensor] = {}
    for block in blocks:
        for name, tensor in block.parameters.items():
            if not same_tensor(parameters.setdefault(name, tensor), tensor):
                raise UnsupportedModelError(
                    f"{where} is called in several ways, whose {name} differ"
                )

    def pick(args: tuple[Any, ...], kwargs: dict[str, Any]) -> MoeBlock:
        fits = (block for call, block in zip(calls, blocks, strict=True) if call.fits(args, kwargs))
        return next(fits, first)  # the first says what is wrong with a call that fits none

    def lowered(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever eager takes
        return pick(args, kwargs).lowered(*args, **kwargs)

    def route(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        found = pick(args, kwargs).route
        assert found is not None  # layers of anyone's route themselves
        result: tuple[Tensor, Tensor] = found(*args, **kwargs)
        return result

    return dataclasses.replace(
        first,
        lowered=lowered,
        route=route,
        parameters=parameters,
        sums_experts=all(block.sums_experts for block in blocks),
        untraceable=frozenset().union(*(block.untraceable for block in blocks)),
        sizes=tuple(dict.fromkeys(size for block in blocks for size in block.sizes)),
        remarks=tuple(dict.fromkeys(text for block in blocks for text in block.remarks)),
    )
