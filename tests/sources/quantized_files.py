"""Small checkpoints in the quantized formats on disk, written here, and their values by NumPy.

Nothing of this uses the package or transformers' own conversion: it is what both are held against.
"""

from __future__ import annotations

import json
import re

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

FP8 = torch.float8_e4m3fn


def make_deepseek():
    """A DeepSeek-V3 whose sizes are no multiples of the blocks that the tests use."""
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=56,
        moe_intermediate_size=24,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        kv_lora_rank=24,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        head_dim=8,
        max_position_embeddings=64,
    )
    return draw(transformers.DeepseekV3ForCausalLM(config))


def make_gpt_oss():
    """A GPT-OSS of two layers; MXFP4 needs sizes that are multiples of 32."""
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        max_position_embeddings=64,
    )
    return draw(transformers.GptOssForCausalLM(config))


def draw(model):
    """Draw every parameter anew, biases and norms too, in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.2 if tensor.dim() == 1 else tensor.shape[-1] ** -0.5
            tensor.copy_(noise * scale + (tensor.dim() == 1 and "bias" not in name))
    return model


def fp8_to_numpy(codes, scales, block):
    """Values of ``[R, C]`` E4M3 codes with one scale per block: bit by bit, then a loop."""
    codes = codes.view(torch.uint8).numpy().astype(np.int64)
    sign = np.where(codes >> 7, -1.0, 1.0)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = (sign * np.where(exponent == 0, mantissa * 2.0**-9, normal)).astype(np.float32)
    scales = scales.float().numpy()
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            values[row, column] *= scales[row // block[0], column // block[1]]
    return values


def quantize_fp8(weight, block, scale_dtype=torch.float32):
    """Codes ``[R, C]`` and scales, one for each block, smaller ones at the edges."""
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
    scales, codes = (
        torch.empty(rows, columns, dtype=scale_dtype),
        torch.empty_like(weight, dtype=FP8),
    )
    for i in range(rows):
        for j in range(columns):
            at = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = weight[at].float().abs().max() / 448
            scaled = weight[at].float() / scales[i, j].float()
            codes[at] = scaled.clamp(-448, 448).to(FP8)
    return codes, scales


def write_fp8(folder, block=(16, 16), scale_dtype=torch.float32, shards=1, settings=None):
    """Save a DeepSeek-V3 as its FP8 checkpoints are; return the tensors and their true values."""
    model = make_deepseek()
    model.save_pretrained(folder)
    from safetensors.torch import load_file

    tensors, values = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if re.search(r"(proj|proj_with_mqa|[qk]v?_[ab]_proj)\.weight$", name):
            codes, scales = quantize_fp8(tensor, block, scale_dtype)
            tensors |= {name: codes, f"{name}_scale_inv": scales}
            values[name] = fp8_to_numpy(codes, scales, block)
        else:
            tensors[name], values[name] = tensor, tensor.float().numpy()
    settings = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block),
        **(settings or {}),
    }
    set_config(folder, quantization_config=settings)
    write_tensors(folder, tensors, shards)
    return tensors, values


FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def quantize_mxfp4(weight):
    """Blocks ``[E, R, G, 16]`` and scales ``[E, R, G]`` of values ``[E, R, 32 * G]``."""
    grouped = weight.float().unflatten(-1, (-1, 32)).numpy()
    exponent = np.floor(np.log2(np.abs(grouped).max(-1))).astype(np.int64) - 2
    scaled = grouped / np.exp2(exponent)[..., None]
    codes = np.abs(np.abs(scaled)[..., None] - np.array(FP4)).argmin(-1) + 8 * (scaled < 0)
    packed = codes[..., 0::2] + 16 * codes[..., 1::2]
    scales = np.ascontiguousarray(exponent + 127, np.uint8)
    return torch.from_numpy(np.ascontiguousarray(packed, np.uint8)), torch.from_numpy(scales)


def mxfp4_to_numpy(blocks, scales):
    """Values ``[E, R, 32 * G]`` in double precision, one half byte at a time."""
    blocks, scales = blocks.numpy().astype(np.int64), scales.numpy().astype(np.int64)
    values = np.empty((*blocks.shape[:-1], 32))
    for half in (0, 1):
        code = blocks >> 4 if half else blocks & 15
        values[..., half::2] = np.array(FP4)[code & 7] * np.where(code & 8, -1.0, 1.0)
    values *= np.ldexp(1.0, scales - 127)[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def write_mxfp4(folder, shards=1):
    """Save a GPT-OSS as its checkpoints are; return the tensors and their true values."""
    model = make_gpt_oss()
    model.save_pretrained(folder)
    tensors, values = {}, {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            blocks, scales = quantize_mxfp4(tensor.transpose(1, 2))
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            values[name] = mxfp4_to_numpy(blocks, scales).swapaxes(1, 2)
        else:
            tensors[name], values[name] = tensor.contiguous(), tensor.float().numpy()
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    set_config(folder, quantization_config=settings)
    write_tensors(folder, tensors, shards)
    return tensors, values


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_tensors(folder, tensors, shards=1):
    """One file, or several with an index that names them."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
