"""Keep small constants that the exporters' clean-up would take for nothing.

onnxscript drops ``x + c`` where c is at most 1e-8, and ``x * c`` where c is within 1e-5 of 1. An
epsilon of 1e-8 guards a division: without it, a row of zeros gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def exact_constants() -> Iterator[None]:
    """Inside, onnxscript's rules for operations that change nothing match exact values only."""
    found = list(_no_op_constants())
    with ExitStack() as stack:
        for constant in found:
            stack.callback(constant.__dict__.update, vars(constant).copy())
            constant._rel_tol = constant._abs_tol = 0.0
        yield


def _no_op_constants() -> Iterator[Any]:
    """The constants ``c`` in the patterns ``x + c``, ``x - c``, ``x * c`` and ``x / c``."""
    from onnxscript.rewriter._pattern_ir import Constant
    from onnxscript.rewriter.rules.common import _no_op

    for rule in _no_op.rules:
        for node in rule._target_pattern:
            yield from (value for value in node.inputs if isinstance(value, Constant))
