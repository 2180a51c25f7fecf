"""Families whose experts do not go through transformers' experts hook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.families.catalogue import Family

_LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}


def vitpose_inputs(seed: int) -> Mapping[str, Tensor]:
    """An image of each data set, which is its expert, in any order."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(6, 3, 64, 48, generator=generator)
    return {"pixel_values": pixels, "dataset_index": torch.randperm(6, generator=generator)}


WITHOUT_HOOK: tuple[Family, ...] = (
    Family(  # softmax, divided by the weights' norm; the experts' matrices lie below each other
        "dbrx",
        "DbrxConfig",
        values={
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 8, "moe_top_k": 2},
        },
        routers=("softmax top-2, renormalized",),
    ),
    Family(  # single rows of two tables are experts; a router mixes the tokens of a batch
        "doge",
        "DogeConfig",
        values={"is_moe": True, "num_experts": 64, "num_experts_per_tok": 8},
        routers=("own operators",),
    ),
    Family(  # experts among the attention's projections too
        "jetmoe",
        "JetMoeConfig",
        values={"kv_channels": 16, "intermediate_size": 40},
        refused="Experts inside an attention",
    ),
    Family(  # the weight multiplies the expert's input
        "llama4",
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        values={"intermediate_size": 40, "intermediate_size_mlp": 96, "attention_chunk_size": 16},
        in_ci=True,
        routers=("top-3",),
    ),
    Family(  # four experts behind the eight give their row back; gate_up_proj has rows for them
        "longcat_flash",
        "LongcatFlashConfig",
        values={
            **_LATENT,
            "num_layers": 2,
            "num_hidden_layers": 4,
            "ffn_hidden_size": 96,
            "moe_topk": 3,
            "zero_expert_num": 4,
            "expert_ffn_hidden_size": 24,
        },
        routers=("own operators",),
    ),
    Family(  # eager runs its experts 0 and 1 alone; its layers get a mask where one hides tokens
        "nllb_moe",
        "NllbMoeConfig",
        "NllbMoeForConditionalGeneration",
        values={
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
            "pad_token_id": 1,
        },
        routers=("own operators",),
    ),
    Family(  # activation, then clamp, on the second layer alone
        "step3p7",
        "Step3p7Config",
        "step3p7.modeling_step3p7.Step3p7ForConditionalGeneration",
        values={
            "text_config": {
                "layer_types": ["full_attention", "sliding_attention"],
                "share_expert_dim": 40,
                "moe_router_scaling_factor": 3.0,
                "swiglu_limits": [0.0, 7.0],
                "swiglu_limits_shared": [0.0, 16.0],
            },
            "vision_config": {"hidden_size": 32, "num_attention_heads": 2},
        },
        routers=("sigmoid + bias top-3, renormalized",),
    ),
    Family(  # encoder and decoder; an expert takes the first tokens of a sequence
        "switch_transformers",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        values={
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 40,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_heads": 4,
            "expert_capacity": 6,
        },
        in_ci=True,
        routers=("own operators",),
    ),
    Family(  # an image's data set is its expert; one matrix per expert
        "vitpose_backbone",
        "VitPoseBackboneConfig",
        "VitPoseBackbone",
        values={
            "image_size": [64, 48],
            "mlp_ratio": 2,
            "num_experts": 6,
            "part_features": 16,
            "out_indices": [2],
        },
        inputs=vitpose_inputs,
        in_ci=True,
        routers=("own operators",),
    ),
)
