"""The models whose export is measured: checkpoints in several formats, and a pickled module."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

GIGABYTE = 1 << 30

# What the checkpoints share; their experts hold nearly all weights.
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}


def width(gigabytes: float) -> int:
    """Width inside each of 8 gated experts in 4 layers of 1024, together so large in float32."""
    return int(gigabytes * GIGABYTE / 4 / 4 / 8 / 3 / 1024) // 128 * 128


MODULE = """
import torch
from torch import nn


class Experts(nn.Module):
    def __init__(self, hidden, inner, count):
        super().__init__()
        self.gate = nn.Linear(hidden, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))
            for _ in range(count)
        )

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, slot = torch.where(ids == number)
            y.index_add_(0, row, expert(x[row]) * weights[row, slot, None])
        return x + y
"""


def write_checkpoint(folder: Path, gigabytes: float, dtype: str) -> Path:
    """A Mixtral of four layers whose experts hold nearly all weights."""
    import torch
    import transformers

    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=width(gigabytes), num_local_experts=8
    )
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    model.save_pretrained(folder / dtype, max_shard_size="500MB")
    return folder / dtype


def write_mxfp4(folder: Path, gigabytes: float) -> Path:
    """A GPT-OSS of four layers with random experts, in the format of its checkpoints."""
    import torch
    import transformers

    config = transformers.GptOssConfig(
        **SIZES, intermediate_size=width(gigabytes), num_local_experts=8
    )

    def quantize(name: str, shape: torch.Size) -> dict[str, torch.Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {}
        count, columns, rows = shape  # the checkpoint holds the transposed
        return {
            f"{name}_blocks": torch.randint(256, (count, rows, columns // 32, 16)).byte(),
            f"{name}_scales": torch.full((count, rows, columns // 32), 120).byte(),
        }

    return write_quantized(folder / "mxfp4", config, {"quant_method": "mxfp4"}, quantize)


def write_fp8(folder: Path, gigabytes: float) -> Path:
    """A DeepSeek-V3 of four layers with random experts, in blocks of 128 x 128."""
    import torch
    import transformers

    config = transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 16},
        intermediate_size=1024,
        moe_intermediate_size=width(gigabytes / 2),
        n_routed_experts=16,
        first_k_dense_replace=0,
        kv_lora_rank=128,
        q_lora_rank=256,
    )

    def quantize(name: str, shape: torch.Size) -> dict[str, torch.Tensor]:
        if ".mlp." not in name or not name.endswith("_proj.weight"):
            return {}
        blocks = [-(-size // 128) for size in shape]
        return {
            name: torch.randint(0x60, shape, dtype=torch.uint8).view(torch.float8_e4m3fn),
            f"{name}_scale_inv": torch.full(blocks, 1e-3),
        }

    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return write_quantized(folder / "fp8", config, settings, quantize)


def write_quantized(
    folder: Path,
    config: Any,  # noqa: ANN401 - a configuration of transformers
    settings: Mapping[str, Any],
    quantize: Callable[[str, Any], dict[str, Any]],
) -> Path:
    """A random checkpoint, those of its tensors quantized for which ``quantize`` returns some."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint_shapes(model):
        own = 0.02 * torch.randn(tensor.shape).bfloat16()
        tensors |= quantize(name, tensor.shape) or {name: own}
    folder.mkdir(exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    quantized = json.dumps({**written, "quantization_config": settings})
    (folder / "config.json").write_text(quantized)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def checkpoint_shapes(model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of transformers
    """Tensors by the names that checkpoints have for them: DeepSeek's experts lie apart."""
    apart = type(model).__name__.startswith("Deepseek")
    for name, tensor in model.state_dict().items():
        if not apart or ".experts." not in name:
            yield name, tensor
            continue
        base, last = name.rsplit(".", 1)
        for number in range(len(tensor)):
            if last == "gate_up_proj":
                gate, up = tensor[number].chunk(2)
                yield f"{base}.{number}.gate_proj.weight", gate
                yield f"{base}.{number}.up_proj.weight", up
            else:
                yield f"{base}.{number}.down_proj.weight", tensor[number]


def write_module(folder: Path, gigabytes: float) -> Path:
    """Four layers with lists of experts, pickled whole."""
    import torch

    (folder / "expert_lists.py").write_text(textwrap.dedent(MODULE))
    sys.path.insert(0, str(folder))
    from expert_lists import Experts  # type: ignore[import-not-found]  # written above

    hidden, layers, experts = 1024, 4, 8
    inner = int(gigabytes * GIGABYTE / 4 / layers / experts / 2 / hidden) // 64 * 64
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Experts(hidden, inner, experts) for _ in range(layers)))
    torch.save(model, folder / "model.pt")
    return folder / "model.pt"
