"""A wrong fusion is the worst fault: what is nearly a known router stays what it is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.optimize.exported import fuse, wrong_rows
from tests.optimize.fresh_logits import fresh_logits
from tests.optimize.near_misses import NOT_WHOLE, ROUTERS


@pytest.fixture(scope="module")
def fused():
    return fuse(ROUTERS)


@pytest.mark.parametrize("name", ROUTERS)
def test_near_miss_routes_as_before(fused, name, tmp_path):
    wrong = wrong_rows(fused, name, ROUTERS[name], fresh_logits(8), tmp_path)
    assert not np.any(wrong), fused.layers[name].routing


@pytest.mark.parametrize("name", sorted(route.__name__ for route in NOT_WHOLE))
def test_near_miss_is_not_fused_from_its_logits_to_its_experts(fused, name):
    """Only a part of it is what the op says."""
    layer = fused.layers[name]
    values = {v.name: v for node in fused.after.graph for v in node.outputs}
    ends = [values[layer.expert_ids].producer(), values[layer.expert_weights].producer()]
    whole = ends[0] is ends[1] and ends[0].op_type == "TopKGating"
    assert not (whole and ends[0].inputs[0].producer().op_type in ("Gemm", "MatMul"))


@pytest.mark.parametrize("name", ["capacity_small", "capacity_large", "capacity_of_the_batch"])
def test_count_over_tokens_stays(fused, name):
    """The pair before a capacity is fused, the capacity itself is not."""
    values = {v.name: v for node in fused.after.graph for v in node.outputs}
    above, queue = set(), [values[fused.layers[name].expert_ids]]
    while queue:
        node = queue.pop().producer()
        if node is not None and node not in above:
            above.add(node)
            queue += [v for v in node.inputs if v is not None]
    assert {"CumSum", "TopKGating"} <= {node.op_type for node in above}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("batch_balance", "tokens depend on each other"),
        ("softmax_of_three", "nearest: top-2, softmax of the chosen"),
        ("bias_twice", "no rule chooses nearly the same experts"),
    ],
)
def test_reason_is_told(fused, name, reason):
    assert fused.layers[name].gating is None
    assert fused.layers[name].routing.startswith(reason)
