"""What a model is cast to before it is traced for an engine, and that it is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moe_export.capture.precision import cast_model, source_dtype
from moe_export.errors import UsageError
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.recognize.block import bound
from moe_export.recognize.stage import recognize
from moe_export.sources.source import load_module
from tests.engine import models


def loaded(model, example=None):
    return load_module(model, example, BuildPlan(output=Path("bundle")), source="test")


def dtypes_inside(found, blocks, dtype):
    with bound(blocks), cast_model(found, blocks, dtype) as typed:
        tensors = [*found.model.named_parameters(), *found.model.named_buffers()]
        return {name: t.dtype for name, t in tensors}, {n: t.dtype for n, t in typed.inputs.items()}


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_all_but_experts_and_what_the_model_keeps_is_cast(dtype, wanted):
    found = loaded(models.seeded(models.deepseek_v3))
    values = {n: t.clone() for n, t in found.model.state_dict().items()}
    blocks = recognize(found, SilentProgress(), keep_going=False).blocks
    inside, inputs = dtypes_inside(found, blocks, dtype)
    assert inside["model.layers.0.mlp.shared_experts.up_proj.weight"] == wanted
    assert inside["lm_head.weight"] == wanted
    assert inside["model.layers.0.mlp.experts.gate_up_proj"] == torch.float32
    assert inside["model.layers.0.mlp.gate.e_score_correction_bias"] == torch.float32
    assert inside["model.rotary_emb.inv_freq"] == torch.float32
    assert inputs["input_ids"] == torch.int64
    for name, tensor in found.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, values[name])


def test_a_layer_of_ones_own_is_called_in_float32_and_returns_half_precision():
    found = loaded(models.seeded(models.Net), torch.randn(5, 64))
    blocks = recognize(found, SilentProgress(), keep_going=False).blocks
    expected = found.run(found.inputs)["output"]
    own = found.model.moe.forward
    with bound(blocks), cast_model(found, blocks, "bf16") as typed:
        assert {p.dtype for p in found.model.moe.parameters()} == {torch.float32}
        assert found.model.out.weight.dtype == torch.bfloat16
        assert found.model.moe(torch.randn(3, 64).bfloat16()).dtype == torch.bfloat16
        half = typed.run(typed.inputs)["output"]
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 3e-2 * expected.abs().max()
    assert found.model.moe.forward == own


def test_a_module_that_mixes_types_keeps_what_it_has_in_float32():
    model = models.seeded(models.Net).half()
    model.out.float()
    found = loaded(model, torch.randn(5, 64))
    inside, inputs = dtypes_inside(found, (), "bf16")
    assert inside["moe.shared.weight"] == torch.bfloat16
    assert inside["out.weight"] == torch.float32
    assert inputs == {"x": torch.bfloat16}


def test_a_weight_that_float16_does_not_hold_is_named():
    model = models.seeded(models.Net)
    with torch.no_grad():
        model.out.weight[1, 2] = 1e6
    found = loaded(model, torch.randn(5, 64))
    dtypes_inside(found, (), "bf16")
    with pytest.raises(UsageError, match=r"out\.weight: its largest weight, 1e\+06, is beyond"):
        dtypes_inside(found, (), "fp16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")],
)
def test_the_type_of_most_weights_is_the_source_s(dtype, name):
    linear = nn.Sequential(nn.Linear(4, 4).to(dtype), nn.LayerNorm(4))
    assert source_dtype(loaded(linear, torch.randn(2, 4))) == name


def test_a_hugging_face_model_s_own_word_counts():
    model = models.seeded(models.qwen3_moe).bfloat16()
    model.config.dtype = torch.bfloat16
    assert source_dtype(loaded(model)) == "bf16"
