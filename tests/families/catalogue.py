"""What a model family is in the tests: a shrunken configuration, and what its export must give."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Small values for the fields that configurations share; a family's own values come on top.
SMALL: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # experts
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 0,
    "mlp_layer_types": ["sparse", "sparse"],
    # latent attention
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    # attention that chooses its keys
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 16,  # each head's score is zero or more: with few of them, sums are tied
    # linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    # towers that a text model does not run
    "depth": 1,
    "num_heads": 4,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "image_size": 64,
}


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: Its folder in transformers' models, or what users call it.
        config: Name of its configuration class.
        model: Name of the class to build; transformers' choice of a causal model if empty.
        values: Configuration values on top of ``SMALL``; nested for configurations inside.
        routers: The MoE layers' routers in the product's words, each once, in the model's order;
            ``own operators`` for one that is not a single node.
        num_layers: MoE layers that must be found.
        refused: Part of the reason why it is refused; empty where it is exported.
        in_ci: Whether the default test run has it; the others are marked slow.
        inputs: From a seed to example inputs, where the product cannot know them.
        chunked: Whether a loop over tokens or chunks of them became a ``Scan``: lengths across
            the chunks' borders are compared too.
    """

    name: str
    config: str
    model: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    routers: tuple[str, ...] = ()
    num_layers: int = 2
    refused: str = ""
    in_ci: bool = False
    inputs: Callable[[int], Mapping[str, Tensor]] | None = None
    chunked: bool = False


def find_class(name: str) -> Any:
    """A public class of transformers, or ``package.Class`` below ``transformers.models``."""
    import transformers

    module, _, attribute = name.rpartition(".")
    if not module:
        return getattr(transformers, attribute)
    return getattr(importlib.import_module(f"transformers.models.{module}"), attribute)


def small_values(config_class: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``config_class``: its share of ``SMALL``, then ``values``, at every level."""
    fields = {f.name for f in dataclasses.fields(config_class)}
    chosen = {name: value for name, value in SMALL.items() if name in fields}
    if "qk_rope_head_dim" in fields:
        chosen |= {"head_dim": chosen["qk_rope_head_dim"]} if "head_dim" in fields else {}
        chosen |= {"num_key_value_heads": chosen["num_attention_heads"]}
    chosen |= {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    inner = getattr(config_class, "sub_configs", {})
    inner = {name: kind for name, kind in inner.items() if dataclasses.is_dataclass(kind)}
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in inner:
            chosen[name] = dict(value)
    for name, kind in inner.items():
        chosen[name] = small_values(kind, values.get(name, {}))
    return chosen


def make_model(family: Family, **changes: Any) -> nn.Module:
    """A random model of ``family`` in eval mode, its configuration altered by ``changes``."""
    import transformers

    config_class = find_class(family.config)
    config = config_class(**small_values(config_class, {**family.values, **changes}))
    torch.manual_seed(0)
    if family.model:
        model = find_class(family.model)(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    redraw(model)
    return model.eval()


@torch.no_grad()
def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, biases and norms too: a bias left at zero would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.dim() <= 1 else parameter.shape[-1] ** -0.5
        centre = 1.0 if parameter.dim() <= 1 and "bias" not in name else 0.0
        if name.endswith("dt_bias"):
            # Small steps, as trained models have. A state that forgets at once would leave a single
            # product, which may be near zero, to a norm.
            centre = -4.0
        parameter.copy_(centre + scale * noise)
    for name, buffer in model.named_buffers():
        if "bias" in name and buffer.is_floating_point():
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("tid2eid"):  # a table of experts by token id, zeros until it is loaded
            order = torch.rand(len(buffer), SMALL["n_routed_experts"], generator=generator)
            buffer.copy_(order.argsort(dim=-1)[:, : buffer.shape[1]])
