"""The model that is timed, and its exact results."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_export.benchmark.cases import Case
from moe_export.runners.arrays import Array


@dataclass(frozen=True)
class Sizes:
    """Of a Qwen3-MoE: half as wide as Qwen3-30B-A3B, with half its experts and heads, and 8 layers.

    Attributes:
        hidden_size: Width of a token.
        moe_intermediate_size: Width inside an expert.
        num_experts: Of each layer.
        num_experts_per_tok: That a token goes to.
        num_hidden_layers: All of them with experts.
        num_attention_heads: Of ``head_dim`` each.
        num_key_value_heads: That these share.
        head_dim: Width of a head.
        vocab_size: Ids.
    """

    hidden_size: int = 1024
    moe_intermediate_size: int = 384
    num_experts: int = 64
    num_experts_per_tok: int = 8
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    vocab_size: int = 32000


def write_checkpoint(sizes: Sizes, folder: Path) -> None:
    """Save a random model with the shapes of Qwen3-MoE, float32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config: Any = Qwen3MoeConfig
    model = Qwen3MoeForCausalLM(
        config(
            **asdict(sizes),
            intermediate_size=3 * sizes.hidden_size,
            max_position_embeddings=4096,
            norm_topk_prob=True,
        )
    )
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    partial.rename(folder)


def load_checkpoint(folder: Path) -> Any:  # noqa: ANN401 - a transformers model
    """The saved model, to run or to export."""
    from transformers import Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def named_tensors(case: Case, index: int) -> dict[str, torch.Tensor]:
    """A case's inputs without the cache."""
    return {name: torch.from_numpy(array) for name, array in case.inputs[index].items()}


def make_cache(case: Case, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401 - a Cache
    """The case's cache as transformers' own; its tensors are in the order of the layers."""
    from transformers import DynamicCache

    cache, tensors = DynamicCache(), [torch.tensor(array, dtype=dtype) for array in
                                      case.cache.values()]  # fmt: skip
    for layer, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
        cache.update(keys, values, layer)
    return cache


def exact_logits(folder: Path, cases: Sequence[Case]) -> dict[str, Array]:
    """Logits of each case's first inputs in float64, by the case's name."""
    model = load_checkpoint(folder).double()
    model.set_experts_implementation("eager")  # grouped_mm has no float64
    found = {}
    for case in cases:
        with torch.inference_mode():
            result = model(
                **named_tensors(case, 0),
                past_key_values=make_cache(case, torch.float64),
                use_cache=True,
            )
        found[case.name] = result.logits.numpy()
    del model, result
    gc.collect()
    return found


def rms_error(found: Array, exact: Array) -> float:
    """Root mean square of the difference, over that of the exact values."""
    difference = found.astype(np.float64) - exact
    return float(np.sqrt((difference**2).mean() / (exact**2).mean()))


def as_arrays(logits: torch.Tensor) -> Mapping[str, Array]:
    """Outputs as contenders name them."""
    return {"logits": logits.numpy()}
