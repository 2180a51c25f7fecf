"""The PyTorch operators that work on rows: fake kernels, ``torch.export`` and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe_export.errors import ContractError
from moe_export.ops.call import dump_call
from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import ExpertCombine, ExpertDispatch, GroupedMatMul
from moe_export.ops.torch_ops import expert_combine, expert_dispatch, grouped_matmul

DISPATCH = ExpertDispatch(num_experts=4, hidden_size=10, first_expert=1)
MATMUL = GroupedMatMul(num_experts=4, in_features=10, out_features=6, has_bias=True)
COMBINE = ExpertCombine(hidden_size=6)
CALLS = {"expert_dispatch": DISPATCH, "grouped_matmul": MATMUL, "expert_combine": COMBINE}


def make_tensors(num_tokens=7, top_k=2):
    """The inputs of every operator by its name, as one layer has them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, 10, generator=generator)
    ids = torch.randint(0, 6, (num_tokens, top_k), generator=generator).int()
    rows, row_map, ends, _ = expert_dispatch(x, ids, DISPATCH)
    weight, bias = (torch.randn(s, generator=generator) for s in ((4, 6, 10), (4, 6)))
    y = grouped_matmul(rows, weight, ends, MATMUL, bias)
    return {
        "expert_dispatch": {"x": x, "expert_ids": ids},
        "grouped_matmul": {"rows": rows, "weight": weight, "group_ends": ends, "bias": bias},
        "expert_combine": {"rows": y, "row_map": row_map, "expert_weights": torch.rand(ids.shape)},
    }


class TinyMoe(nn.Module):
    """Experts of one product with a scale each, over parameters."""

    def __init__(self):
        super().__init__()
        tensors = make_tensors()["grouped_matmul"]
        self.weight, self.bias = nn.Parameter(tensors["weight"]), nn.Parameter(tensors["bias"])
        self.scale = nn.Parameter(torch.randn(4, 6))

    def forward(self, x, ids, weights):
        rows, row_map, ends, experts = expert_dispatch(x, ids, DISPATCH)
        rows = grouped_matmul(rows, self.weight, ends, MATMUL, self.bias)
        return expert_combine(rows * self.scale.index_select(0, experts), row_map, weights, COMBINE)


def make_example(num_tokens):
    ids = torch.randint(0, 6, (num_tokens, 2))
    return torch.randn(num_tokens, 10), ids, torch.rand(num_tokens, 2)


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("name", CALLS)
def test_operator_passes_opcheck(name, num_tokens):
    tensors = list(make_tensors(num_tokens)[name].values())
    call = dump_call(CALLS[name], SourceLayout(), "layers.0")
    torch.library.opcheck(getattr(torch.ops.moe_export, name).default, (tensors, call))


def test_export_keeps_the_number_of_tokens_dynamic():
    model, tokens = TinyMoe(), torch.export.Dim("tokens", min=0, max=64)
    program = torch.export.export(model, make_example(5), dynamic_shapes=({0: tokens},) * 3)
    for num_tokens in (0, 1, 5, 33):
        example = make_example(num_tokens)
        torch.testing.assert_close(program.module()(*example), model(*example), rtol=0, atol=0)


def test_layer_equals_a_loop_over_tokens():
    model = TinyMoe()
    x, ids, weights = make_example(9)
    expected = torch.zeros(9, 6)
    for t in range(9):
        for e, weight in zip(ids[t].tolist(), weights[t], strict=True):
            if 1 <= e <= 4:
                product = model.weight[e - 1] @ x[t] + model.bias[e - 1]
                expected[t] += weight * product * model.scale[e - 1]
    torch.testing.assert_close(model(x, ids, weights), expected)


@pytest.mark.parametrize(
    ("name", "tensor", "changed", "message"),
    [
        ("expert_dispatch", "x", torch.zeros(7, 9), "dispatch_c1: x must"),
        ("expert_dispatch", "expert_ids", torch.zeros(6, 2).int(), "dispatch_c2: expert_ids must"),
        ("expert_dispatch", "expert_ids", torch.zeros(7, 2), "dispatch_inputs: expert_ids must"),
        ("grouped_matmul", "rows", torch.zeros(14, 9), "matmul_c1: rows must"),
        ("grouped_matmul", "weight", torch.zeros(4, 10, 6), "matmul_c2: weight must"),
        ("grouped_matmul", "group_ends", torch.zeros(5).int(), "matmul_c3: group_ends must"),
        ("grouped_matmul", "group_ends", torch.zeros(4).long(), "matmul_inputs: group_ends must"),
        ("grouped_matmul", "bias", torch.zeros(6), "matmul_c4: bias must"),
        ("grouped_matmul", "bias", None, "matmul_inputs: expected rows, weight, group_ends, bias"),
        ("grouped_matmul", "group_ends", torch.tensor([1, 0, 3, 3]).int(), "matmul_c7: group_ends"),
        ("grouped_matmul", "group_ends", torch.tensor([0, 0, 0, 15]).int(), "matmul_c7: group_end"),
        ("expert_combine", "rows", torch.zeros(14, 5), "combine_c1: rows must"),
        ("expert_combine", "row_map", torch.zeros(14).int(), "combine_c2: row_map must"),
        ("expert_combine", "row_map", torch.zeros(7, 2).long(), "combine_inputs: row_map must"),
        ("expert_combine", "row_map", torch.full((7, 2), 14).int(), "combine_c4: row_map must"),
        ("expert_combine", "row_map", torch.full((7, 2), -2).int(), "combine_c4: row_map must"),
        ("expert_combine", "expert_weights", torch.zeros(7, 3), "combine_c3: expert_weights must"),
    ],
)
def test_refusal_names_the_constraint_and_the_tensor(name, tensor, changed, message):
    functions = {f.__name__: f for f in (expert_dispatch, grouped_matmul, expert_combine)}
    given = make_tensors()[name] | {tensor: changed}
    with pytest.raises(ContractError, match=f"^{message}"):
        functions[name](**given, attributes=CALLS[name])


def test_dispatch_c4_refuses_more_slots_than_int32_counts():
    x, ids = torch.zeros(1, 10).expand(2**16, 10), torch.zeros(1, 1).int().expand(2**16, 2**15)
    with pytest.raises(ContractError, match=r"^dispatch_c4: expert_ids"):
        expert_dispatch(x, ids, DISPATCH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_added_in_float32(dtype):
    """The small term in between is lost where sums are rounded to half precision."""
    rows = torch.tensor([1.0, -1.0]).unsqueeze(1).expand(2, 6).to(dtype)
    row_map, weights = torch.tensor([[0, 0, 1]]).int(), torch.tensor([[1.0, 2.0**-12, 1.0]])
    y = expert_combine(rows, row_map, weights, COMBINE)
    assert y.dtype == dtype
    assert y.tolist() == [[2.0**-12] * 6]
