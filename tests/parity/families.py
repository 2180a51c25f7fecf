"""Tiny random models of real Mixture-of-Experts architectures, two layers each.

Every parameter is drawn anew, biases and norms too: a bias left at zero would prove nothing.
"""

from __future__ import annotations

import torch

SHARED = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LATENT = {
    **SHARED,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
}

# Configuration class and its values, by family.
FAMILIES = {
    "mixtral": ("MixtralConfig", {**SHARED, "intermediate_size": 40, "num_local_experts": 8}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **SHARED,
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 24,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
        },
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **SHARED,
            "intermediate_size": 96,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {**LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v3": ("DeepseekV3Config", {**LATENT, "routed_scaling_factor": 2.5}),
    "gpt_oss": (
        "GptOssConfig",
        {
            **SHARED,
            "head_dim": 16,
            "intermediate_size": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
        },
    ),
    "olmoe": (
        "OlmoeConfig",
        {**SHARED, "intermediate_size": 24, "num_experts": 16, "num_experts_per_tok": 4},
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        {**SHARED, "intermediate_size": 40, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
}


def make_model(family: str, **changes: object) -> torch.nn.Module:
    """A random model of ``family`` in eval mode, its configuration altered by ``changes``."""
    import transformers

    config_class, values = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**values, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            centre = 1.0 if parameter.dim() == 1 and "bias" not in name else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    return model
