"""Quantized checkpoints: two formats are loaded to the last bit, the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_export
from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.plan import BuildPlan
from moe_export.sources.dequantize import FP4_VALUES, scale_blocks, unpack_fp4
from moe_export.sources.source import load_source
from tests.sources.quantized_files import (
    make_gpt_oss,
    mxfp4_to_numpy,
    set_config,
    write_fp8,
    write_mxfp4,
    write_tensors,
)

PLAN = BuildPlan(output=Path("unused"))


def merge_experts(values):
    """What transformers makes of one matrix per expert and projection: all experts in two."""
    merged, layers = {}, {}
    for name, value in values.items():
        layer, experts, rest = name.partition(".experts.")
        if experts:
            number, _, projection = rest.partition(".")
            layers.setdefault(layer, {})[int(number), projection.removesuffix(".weight")] = value
        else:
            merged[name] = value
    for layer, parts in layers.items():
        count = 1 + max(number for number, _ in parts)
        gate, up, down = (
            np.stack([parts[i, f"{name}_proj"] for i in range(count)])
            for name in ("gate", "up", "down")
        )
        merged[f"{layer}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        merged[f"{layer}.experts.down_proj"] = down
    return merged


def check_exact(model, values):
    """Every tensor of ``model`` is float32 and equal to ``values``, and none is left out."""
    state = model.state_dict()
    assert set(state) == set(values)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    wrong = [n for n, t in state.items() if not np.array_equal(t.numpy(), values[n])]
    assert wrong == []


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
@pytest.mark.parametrize("shards", [1, 3])
def test_block_fp8_is_loaded_exactly(tmp_path, shards, scale_dtype):
    tensors, values = write_fp8(tmp_path, shards=shards, scale_dtype=scale_dtype)
    assert any(t.shape[0] % 16 for t in tensors.values() if t.dtype == torch.float8_e4m3fn)
    loaded = load_source(str(tmp_path), PLAN)
    check_exact(loaded.model, merge_experts(values))
    assert loaded.source_dtypes == {}
    assert loaded.remarks[0].startswith("40 FP8 tensors were loaded as the float32 numbers")


def test_block_fp8_with_the_published_block_size(tmp_path):
    _, values = write_fp8(tmp_path, block=(128, 128))
    check_exact(load_source(str(tmp_path), PLAN).model, merge_experts(values))


def test_bytes_are_scales_in_powers_of_two(tmp_path):
    tensors, values = write_fp8(tmp_path, scale_dtype=torch.float8_e8m0fnu)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float8_e8m0fnu:
            tensors[name] = tensor.view(torch.uint8)
    write_tensors(tmp_path, tensors)
    check_exact(load_source(str(tmp_path), PLAN).model, merge_experts(values))


def test_fp8_with_one_scale_per_tensor(tmp_path):
    whole = (1000, 1000)
    tensors, values = write_fp8(tmp_path, block=whole, settings={"weight_block_size": None})
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = tensors[name].reshape(())
        tensors[name.replace("weight_scale_inv", "activation_scale")] = torch.tensor(0.5)
    write_tensors(tmp_path, tensors)
    loaded = load_source(str(tmp_path), PLAN)
    check_exact(loaded.model, merge_experts(values))
    assert len(loaded.remarks) == 1
    tensors[f"{EXPERT}_scale_inv"] = torch.ones(2, 3)
    write_tensors(tmp_path, tensors)
    with pytest.raises(UsageError, match=rf"{EXPERT}_scale_inv is \[2, 3\]; expected one scale"):
        load_source(str(tmp_path), PLAN)


def test_model_that_is_quantized_in_memory_is_refused(tmp_path):
    model = make_gpt_oss()
    model.is_quantized, model.quantization_method = True, "bitsandbytes"
    with pytest.raises(
        UnsupportedModelError, match="GptOssForCausalLM is quantized by bitsandbytes"
    ):
        moe_export.build(model, output=tmp_path / "bundle")


@pytest.mark.parametrize("shards", [1, 3])
def test_mxfp4_is_loaded_exactly(tmp_path, shards):
    _, values = write_mxfp4(tmp_path, shards)
    loaded = load_source(str(tmp_path), PLAN)
    check_exact(loaded.model, values)
    assert loaded.remarks[0].startswith("4 MXFP4 tensors were loaded as the float32 numbers")


@pytest.mark.parametrize("write", [write_fp8, write_mxfp4])
def test_quantized_checkpoint_is_exported(tmp_path, write):
    folder = tmp_path / "model"
    write(folder)
    model = load_source(str(folder), PLAN).model
    bundle = moe_export.build(model, output=tmp_path / "bundle")
    assert bundle.manifest.parity["status"] == "passed"
    assert {layer["experts"]["weight_type"] for layer in bundle.manifest.layers} == {"fp32"}


def test_quantized_model_says_where_it_comes_from_and_how_it_generates(tmp_path):
    write_mxfp4(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5, "top_k": 7}')
    model = load_source(str(tmp_path), PLAN).model
    assert model.config.name_or_path == str(tmp_path)
    assert (model.generation_config.eos_token_id, model.generation_config.top_k) == (5, 7)
    assert not hasattr(model.config, "quantization_config")


def test_all_codes_and_scales_of_mxfp4():
    blocks = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 16).expand(16, 255, 16)
    scales = torch.arange(255, dtype=torch.uint8).expand(16, 255)
    powers = scales.contiguous().view(torch.float8_e8m0fnu).float()
    found = unpack_fp4(blocks, powers).double().numpy()
    expected = mxfp4_to_numpy(blocks, scales)
    finite = np.abs(expected) < 2.0**128  # 6 * 2**127 is too large for float32
    assert finite.mean() > 0.99
    assert np.array_equal(found[finite], expected[finite])
    assert np.isinf(found[~finite]).all()
    assert sorted(set(FP4_VALUES)) == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_edge_blocks_take_their_own_scale():
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = scale_blocks(torch.ones(3, 5), scales, (2, 4))
    assert found.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 1, 2], [3, 3, 3, 3, 4]]


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(f"{EXPERT}_scale_inv"),
            f"{EXPERT} is F8_E4M3 and has no {EXPERT}_scale_inv",
        ),
        (lambda t: t.pop(EXPERT), f"{EXPERT}_scale_inv scales {EXPERT}, which is no FP8 tensor"),
        (
            lambda t: t.update({EXPERT: t[EXPERT].to(torch.bfloat16)}),
            f"{EXPERT}_scale_inv scales {EXPERT}, which is no FP8 tensor",
        ),
        (
            lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(2, 4)}),
            rf"{EXPERT}_scale_inv is \[2, 4\]; expected \[2, 3\], one scale for every 16 x 16",
        ),
        (
            lambda t: t.update({f"{EXPERT}_scale_inv": torch.ones(2, 3, dtype=torch.int32)}),
            f"{EXPERT}_scale_inv is I32; expected one of F32, BF16",
        ),
        (
            lambda t: t.update({EXPERT: t[EXPERT].to(torch.float8_e5m2)}),
            f"{EXPERT} is F8_E5M2; expected F8_E4M3",
        ),
    ],
)
def test_fp8_tensor_that_contradicts_its_scales_is_named(tmp_path, change, message):
    tensors, _ = write_fp8(tmp_path)
    change(tensors)
    write_tensors(tmp_path, tensors)
    with pytest.raises(UsageError, match=message):
        load_source(str(tmp_path), PLAN)


@pytest.mark.parametrize("block", [[16], [16, 0], 16, ["16", 16], [16, 16, 16]])
def test_block_size_that_is_none_is_refused(tmp_path, block):
    write_fp8(tmp_path, settings={"weight_block_size": block})
    with pytest.raises(
        UsageError, match=r"config\.json: weight_block_size is .*expected two sizes"
    ):
        load_source(str(tmp_path), PLAN)


def test_scales_for_another_block_size_are_refused(tmp_path):
    write_fp8(tmp_path, settings={"weight_block_size": [128, 128]})
    with pytest.raises(
        UsageError, match=r"expected \[1, 1\], one scale for every 128 x 128 values"
    ):
        load_source(str(tmp_path), PLAN)


DOWN = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{DOWN}_scales"), f"{DOWN}_blocks has no {DOWN}_scales"),
        (lambda t: t.pop(f"{DOWN}_blocks"), f"{DOWN}_scales has no {DOWN}_blocks"),
        (
            lambda t: t.update({f"{DOWN}_scales": t[f"{DOWN}_scales"][:, :5].contiguous()}),
            rf"{DOWN}_scales is U8 \[4, 5, 1\]; expected U8 \[4, 64, 1\]",
        ),
        (
            lambda t: t.update({f"{DOWN}_blocks": t[f"{DOWN}_blocks"][..., :8].contiguous()}),
            rf"{DOWN}_blocks is U8 \[4, 64, 1, 8\]; expected U8 \[experts, rows, groups, 16\]",
        ),
        (
            lambda t: t.update({f"{DOWN}_blocks": t[f"{DOWN}_blocks"].to(torch.int8)}),
            rf"{DOWN}_blocks is I8 \[4, 64, 1, 16\]; expected U8",
        ),
        (lambda t: t[f"{DOWN}_scales"].fill_(255), f"{DOWN}_scales holds 255, which is no scale"),
    ],
)
def test_mxfp4_tensor_that_contradicts_its_scales_is_named(tmp_path, change, message):
    tensors, _ = write_mxfp4(tmp_path)
    change(tensors)
    write_tensors(tmp_path, tensors)
    with pytest.raises(UsageError, match=message):
        load_source(str(tmp_path), PLAN)


def test_mxfp4_of_another_model_size_names_the_tensor(tmp_path):
    tensors, _ = write_mxfp4(tmp_path)
    for part in ("blocks", "scales"):
        name = f"{DOWN}_{part}"
        tensors[name] = torch.cat([tensors[name]] * 2, dim=2)  # columns of twice as many values
    write_tensors(tmp_path, tensors)
    with pytest.raises(
        UsageError, match=rf"{DOWN}: \[4, 64, 64\] in the checkpoint, \[4, 32, 64\] in the model"
    ):
        load_source(str(tmp_path), PLAN)


def test_fp8_expert_of_another_size_names_the_parameter(tmp_path):
    tensors, _ = write_fp8(tmp_path)
    tensors[EXPERT] = tensors[EXPERT][:16].contiguous()
    tensors[f"{EXPERT}_scale_inv"] = tensors[f"{EXPERT}_scale_inv"][:1].contiguous()
    write_tensors(tmp_path, tensors)
    message = r"layers\.1\.mlp\.experts\.gate_up_proj do not fit together: .*\[16, 48\] at entry 2"
    with pytest.raises(UsageError, match=message):
        load_source(str(tmp_path), PLAN)


def test_quantized_weights_without_their_config_are_refused(tmp_path):
    write_fp8(tmp_path)
    set_config(tmp_path, quantization_config=None)
    with pytest.raises(UsageError, match=r"proj\.weight is F8_E4M3, but config\.json has no quant"):
        load_source(str(tmp_path), PLAN)


def test_config_that_promises_quantized_weights_is_not_believed(tmp_path):
    make_gpt_oss().save_pretrained(tmp_path)
    set_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(UsageError, match="says that it is quantized, but no tensor of it is MXFP4"):
        load_source(str(tmp_path), PLAN)


METHODS = [
    "gptq",
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "hqq",
    "quanto",
    "torchao",
    "aqlm",
    "vptq",
    "fbgemm_fp8",
    "nvfp4",
    "auto-round",
    "a_method_of_tomorrow",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inside", ["", "text_config"])
def test_other_quantizations_are_refused_by_name_from_the_config_alone(tmp_path, method, inside):
    settings = {"quantization_config": {"quant_method": method, "bits": 4}}
    config = {"model_type": "mixtral", **({inside: settings} if inside else settings)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnsupportedModelError) as caught:
        load_source(str(tmp_path), PLAN)
    message = str(caught.value)
    assert f"is quantized by {method}, which is not read" in message
    assert "export the checkpoint that it was quantized from" in message


def test_early_bitsandbytes_checkpoints_do_not_name_it(tmp_path):
    config = {"model_type": "mixtral", "quantization_config": {"load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"by bitsandbytes.*model\.dequantize\(\)"):
        load_source(str(tmp_path), PLAN)


@pytest.mark.parametrize(
    ("file", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")]
)
def test_files_of_older_tools_name_the_method(tmp_path, file, method):
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    (tmp_path / file).write_text('{"bits": 4}')
    with pytest.raises(UnsupportedModelError, match=f"is quantized by {method}"):
        load_source(str(tmp_path), PLAN)


def test_packed_fp4_experts_are_refused(tmp_path):
    write_fp8(tmp_path, settings={"expert_dtype": "fp4"})
    with pytest.raises(UnsupportedModelError, match="experts packed in 4 bits"):
        load_source(str(tmp_path), PLAN)


@pytest.mark.parametrize("place", ["file", "folder", "folder with config"])
def test_gguf_is_refused_with_the_way_out(tmp_path, place):
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    if place == "folder with config":
        (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(UnsupportedModelError, match=r"GGUF.*gguf_file="):
        load_source(str(file if place == "file" else tmp_path), PLAN)
