"""Which conditions inside a router were seen both to hold and not to hold.

A router that is odd in a rare case tests for it. As long as a condition has been seen one way
only, agreement says nothing about the other.
"""

from __future__ import annotations

import numpy as np

from moe_export.optimize.observation import Observation
from moe_export.optimize.router_slice import RouterSlice
from moe_export.optimize.slice_run import SliceRun

# Conditions about numbers that the judged rows do not have.
_EXEMPT = {"IsNaN", "IsInf"}


class Coverage:
    """Collects over runs.

    Args:
        part: The cut.
        names: Values to watch; those of other types than bool are passed over.
    """

    def __init__(self, part: RouterSlice, names: set[str]) -> None:
        exempt = {
            v.name for node in part.model.graph if node.op_type in _EXEMPT for v in node.outputs
        }
        self._missing = {(name, way) for name in names - exempt for way in (True, False)}

    def add(self, run: SliceRun, seen: Observation) -> None:
        """Note what the judged rows of a run show."""
        tokens = len(run.logits)
        for name, way in list(self._missing):
            value = run.values.get(name)
            if value is None or value.dtype != np.bool_:
                self._missing.discard((name, way))
                continue
            rows = value.reshape(tokens, -1)[seen.judged] if value.size % tokens == 0 else value
            if (rows == way).any():
                self._missing.discard((name, way))

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing
