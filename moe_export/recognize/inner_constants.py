"""The constants of an expert's inner function, taken from a layer's own operators."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args

from moe_export.ops.spec import Activation
from moe_export.recognize.trace import Trace

_CLAMPS = ("aten::clamp", "aten::clamp_max", "aten::clamp_min", "aten::hardtanh")
_FACTORS = ("aten::mul.Tensor", "aten::mul.Scalar")
_TERMS = ("aten::add.Tensor", "aten::add.Scalar")
_MOST = 4


class Constants:
    """Numbers that may be an activation's alpha, a clamp's limit or an offset.

    Args:
        trace: One eager run of a layer.
    """

    def __init__(self, trace: Trace) -> None:
        self._alphas = [1.0, 1.702]
        self._limits: list[float] = []
        self._offsets = [0.0]
        for op in trace.ops:
            numbers = [
                float(a) for a in op.args if isinstance(a, int | float) and not isinstance(a, bool)
            ]
            name = op.func.name()
            if name in _CLAMPS:
                self._limits += [abs(n) for n in numbers if n]
            elif name in _FACTORS:
                self._alphas += numbers
            elif name in _TERMS:
                self._offsets += numbers

    def forms(self, *, gated: bool) -> Iterator[dict[str, Any]]:
        """Fields of ``GroupedExperts`` to try, the plainest first."""
        plain = [
            {"activation": activation, "alpha": alpha}
            for activation in get_args(Activation)
            for alpha in (_few(self._alphas) if activation == "silu" else (1.0,))
        ]
        yield from plain
        if not gated:
            return
        ways = [(0.0, "input"), *itertools.product(_few(self._limits), ("input", "output"))]
        for form, (limit, way), offset in itertools.product(plain, ways, _few(self._offsets)):
            if limit or offset:
                yield {**form, "limit": limit, "limit_on": way, "up_offset": offset}


def _few(numbers: list[float]) -> list[float]:
    return list(dict.fromkeys(numbers))[:_MOST]
