"""One router, many spellings: each is fused, and routes as before."""

from __future__ import annotations

import numpy as np
import pytest

from tests.optimize.exported import fuse, wrong_rows
from tests.optimize.fresh_logits import fresh_logits
from tests.optimize.spellings import ROUTERS, SPELLINGS


@pytest.fixture(scope="module")
def fused():
    return fuse(ROUTERS)


@pytest.mark.parametrize("route", SPELLINGS, ids=lambda route: route.__name__)
def test_spelling_is_fused(fused, route, tmp_path):
    layer = fused.layers[route.__name__]
    assert layer.gating is not None, layer.routing
    assert layer.routing == SPELLINGS[route]
    wrong = wrong_rows(fused, route.__name__, ROUTERS[route.__name__], fresh_logits(8), tmp_path)
    assert not np.any(wrong)


def test_no_operator_of_a_router_is_left(fused):
    left = {node.op_type for node in fused.after.graph}
    assert not left & {"TopK", "ReduceSum", "ScatterElements", "ArgMax"}
