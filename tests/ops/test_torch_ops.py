"""The PyTorch operators: fake kernels, ``torch.export``, layouts and refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from moe_export.errors import ContractError
from moe_export.ops.call import dump_call
from moe_export.ops.layout import SourceLayout
from moe_export.ops.spec import GroupedExperts, TopKGating
from moe_export.ops.torch_ops import grouped_experts, top_k_gating
from moe_export.tolerances import LAYER_TOLERANCE

EXPERTS = GroupedExperts(num_experts=4, hidden_size=10, intermediate_size=6, has_bias=True)
GATING = TopKGating(top_k=2, has_selection_bias=True)


def make_tensors(num_tokens=7, top_k=2):
    """Row-major inputs of ``EXPERTS`` by name."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "x": torch.randn(num_tokens, 10, generator=generator),
        "expert_ids": torch.randint(-1, 5, (num_tokens, top_k), generator=generator).int(),
        "expert_weights": torch.rand(num_tokens, top_k, generator=generator),
    }
    for name, shape in EXPERTS.weight_shapes().items():
        tensors[name] = torch.randn(shape, generator=generator)
    return tensors


def store(layout, name, tensor):
    if layout.interleaved and name in ("up_weight", "up_bias"):
        tensor = torch.stack(tensor.chunk(2, dim=1), dim=2).flatten(1, 2)
    if layout.transposed and name in ("up_weight", "down_weight"):
        tensor = tensor.mT.contiguous()
    return tensor


class TinyMoe(nn.Module):
    """Gating and experts over buffers, as lowering leaves them in a model."""

    def __init__(self):
        super().__init__()
        tensors = make_tensors()
        self.register_buffer("router", torch.randn(4, 10))
        self.register_buffer("selection_bias", torch.randn(4))
        for name in EXPERTS.input_names()[3:]:
            self.register_buffer(name, tensors[name])

    def forward(self, x):
        ids, weights = top_k_gating(x @ self.router.T, GATING, self.selection_bias)
        stored = [getattr(self, name) for name in EXPERTS.input_names()[3:]]
        return grouped_experts([x, ids, weights, *stored], EXPERTS)


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("renormalize", [False, True])
def test_gating_operator_passes_opcheck(num_tokens, renormalize):
    attributes = TopKGating(top_k=2, renormalize=renormalize)
    call = dump_call(attributes, SourceLayout(), "layers.0")
    torch.library.opcheck(
        torch.ops.moe_export.top_k_gating.default, ([torch.randn(num_tokens, 4)], call)
    )


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize("layout", [SourceLayout(), SourceLayout(True, True)])
def test_experts_operator_passes_opcheck(num_tokens, layout):
    tensors = [store(layout, name, t) for name, t in make_tensors(num_tokens).items()]
    call = dump_call(EXPERTS, layout, "layers.0")
    torch.library.opcheck(torch.ops.moe_export.grouped_experts.default, (tensors, call))


def test_export_keeps_the_number_of_tokens_dynamic():
    model = TinyMoe()
    tokens = torch.export.Dim("tokens", min=0, max=64)
    program = torch.export.export(model, (torch.randn(5, 10),), dynamic_shapes=({0: tokens},))
    for num_tokens in (0, 1, 5, 33):
        x = torch.randn(num_tokens, 10)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


def test_export_keeps_one_call_per_op():
    program = torch.export.export(TinyMoe(), (torch.randn(5, 10),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [c for c in calls if c.startswith("moe_export")] == [
        "moe_export.top_k_gating.default",
        "moe_export.grouped_experts.default",
    ]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_stored_layout_equals_row_major(transposed, interleaved):
    tensors = make_tensors()
    layout = SourceLayout(transposed, interleaved)
    stored = [store(layout, name, t) for name, t in tensors.items()]
    expected = grouped_experts(list(tensors.values()), EXPERTS)
    # Another memory order may choose another product: the values are equal, not the bits.
    tolerance = LAYER_TOLERANCE * float(expected.abs().max())
    found = grouped_experts(stored, EXPERTS, layout)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert tolerance > 0


@pytest.mark.parametrize(
    ("name", "shape", "label"),
    [
        ("x", (7, 9), "experts_c1"),
        ("x", (7, 10, 1), "experts_c1"),
        ("expert_ids", (6, 2), "experts_c2"),
        ("expert_weights", (7, 3), "experts_c3"),
        ("up_weight", (4, 10, 12), "experts_c4"),
        ("down_weight", (4, 6, 10), "experts_c4"),
        ("up_bias", (4, 6), "experts_c5"),
        ("down_bias", (10,), "experts_c5"),
    ],
)
def test_experts_name_the_tensor_of_wrong_shape(name, shape, label):
    tensors = make_tensors() | {name: torch.zeros(shape)}
    with pytest.raises(ContractError, match=rf"^{label}: {name} must"):
        grouped_experts(list(tensors.values()), EXPERTS)


@pytest.mark.parametrize("name", ["up_weight", "down_weight"])
def test_transposed_layout_refuses_row_major_weights(name):
    tensors = {n: store(SourceLayout(True), n, t) for n, t in make_tensors().items()}
    tensors[name] = make_tensors()[name]
    with pytest.raises(ContractError, match=rf"^experts_c4: {name} must"):
        grouped_experts(list(tensors.values()), EXPERTS, SourceLayout(transposed=True))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_experts_refuse_a_wrong_number_of_tensors(count):
    tensors = [*make_tensors().values(), torch.zeros(1)][:count]
    with pytest.raises(ContractError, match=rf"^experts_inputs: .*found {count} tensors"):
        grouped_experts(tensors, EXPERTS)


@pytest.mark.parametrize(
    ("logits", "bias", "message"),
    [
        ((4,), (4,), "gating_c1: logits must"),
        ((3, 1), (1,), "gating_c2: top_k"),
        ((3, 4), (3,), "gating_c3: selection_bias must"),
    ],
)
def test_gating_names_the_tensor_of_wrong_shape(logits, bias, message):
    with pytest.raises(ContractError, match=f"^{message}"):
        top_k_gating(torch.zeros(logits), GATING, torch.zeros(bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids, weights = top_k_gating(logits, TopKGating(top_k=3))
    expected_ids, expected_weights = top_k_gating(logits.float(), TopKGating(top_k=3))
    assert weights.dtype == torch.float32
    assert torch.equal(ids, expected_ids)
    assert torch.equal(weights, expected_weights)


@pytest.mark.parametrize("has_bias", [False, True])
def test_gating_c3_bias_and_flag_must_agree(has_bias):
    attributes = TopKGating(top_k=1, has_selection_bias=not has_bias)
    bias = torch.zeros(4) if has_bias else None
    with pytest.raises(ContractError, match="gating_c3: selection_bias"):
        top_k_gating(torch.zeros(2, 4), attributes, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_on", ["output", "input"])
def test_half_precision_tokens_are_computed_in_float32(dtype, weight_on):
    attributes = dataclasses.replace(EXPERTS, weight_on=weight_on)
    tensors = make_tensors()
    tensors["x"] = tensors["x"].to(dtype)
    found = grouped_experts(list(tensors.values()), attributes)
    tensors["x"] = tensors["x"].float()
    assert found.dtype == dtype
    assert torch.equal(found, grouped_experts(list(tensors.values()), attributes).to(dtype))
