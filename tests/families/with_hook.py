"""The families whose experts go through transformers' experts hook."""

from __future__ import annotations

from typing import Any

from tests.families.catalogue import Family

LINEAR_THEN_FULL = ["linear_attention", "full_attention"]
SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]
TEXT_ROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 0.5,
}

WITH_HOOK: tuple[Family, ...] = (
    Family(
        "afmoe",
        "AfmoeConfig",
        values={"num_dense_layers": 0, "route_scale": 1.5},
        routers=("sigmoid + bias top-3, renormalized (sum + 1e-20), x 1.5",),
    ),
    Family(
        "aria",
        "AriaTextConfig",
        values={"moe_num_experts": 8, "moe_topk": 3},
        routers=("top-3, softmax of the chosen",),
    ),
    Family(
        "axk1",
        "AXK1Config",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family(
        "axk2",
        "AXK2Config",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, others 0, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family(
        "bailing_hybrid",
        "BailingHybridConfig",
        values={"layer_types": LINEAR_THEN_FULL},
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
        chunked=True,
    ),
    Family(
        "beam",
        "BeamConfig",
        values={"layer_types": SLIDING_THEN_FULL},
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "cohere2_moe",
        "Cohere2MoeConfig",
        values={"layer_types": SLIDING_THEN_FULL},
        routers=("top-3, softmax of the chosen",),
    ),
    Family(
        "deepseek_ocr2",
        "DeepseekOcr2Config",
        "DeepseekOcr2ForConditionalGeneration",
        routers=("softmax top-3",),
    ),
    Family(
        "deepseek_v2",
        "DeepseekV2Config",
        values={"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
        in_ci=True,
        routers=("softmax top-3, 2 of 4 groups by their best, others 0, x 1.5",),
    ),
    Family(
        "deepseek_v3",
        "DeepseekV3Config",
        in_ci=True,
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family(
        "deepseek_v32",
        "DeepseekV32Config",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family(
        "deepseek_v4",
        "DeepseekV4Config",
        values={"mlp_layer_types": ["hash_moe", "moe"]},
        in_ci=True,
        routers=("own operators", "sqrt_softplus + bias top-3, renormalized (sum + 1e-20), x 1.5"),
    ),
    Family(
        "diffusion_gemma",
        "DiffusionGemmaConfig",
        "DiffusionGemmaForBlockDiffusion",
        values={"text_config": {"top_k_experts": 3, "layer_types": SLIDING_THEN_FULL}},
        refused="cannot be traced in model.decoder",
    ),
    Family(
        "dots1",
        "Dots1Config",
        values={"num_key_value_heads": 4},
        routers=("sigmoid + bias top-3, 2 of 4 groups by their two best",),
    ),
    Family(
        "dots3_note",
        "Dots3NoteTextConfig",
        values={"layer_types": ["indexed_attention", "indexed_attention"]},
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "ernie4_5_moe",
        "Ernie4_5_MoeConfig",
        values={"moe_num_experts": 8, "moe_k": 3, "moe_layer_start_index": 0},
        routers=("softmax + bias top-3, renormalized (sum at least 1e-12)",),
        in_ci=True,
    ),
    Family(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeConfig",
        "Ernie4_5_VLMoeForConditionalGeneration",
        values={
            "text_config": {
                "moe_num_experts": 8,
                "moe_k": 3,
                "moe_intermediate_size": [24, 24],
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [3, 3, 2],
                },
            }
        },
        routers=("softmax + bias top-3, renormalized (sum at least 1e-12)",),
    ),
    Family(
        "exaone_moe",
        "ExaoneMoeConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family("flex_olmo", "FlexOlmoConfig", routers=("softmax top-3",)),
    Family(
        "flint",
        "FlintConfig",
        values={"mlp_only_layers": []},
        routers=("sigmoid top-3, renormalized",),
    ),
    Family(
        "gemma4",
        "Gemma4TextConfig",
        values={
            "enable_moe_block": True,
            "top_k_experts": 3,
            "layer_types": SLIDING_THEN_FULL,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
        },
        in_ci=True,
        routers=("softmax top-3, renormalized",),
    ),
    Family(
        "glm4_moe",
        "Glm4MoeConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "glm4_moe_lite",
        "Glm4MoeLiteConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 1.8",
        ),
    ),
    Family(
        "glm4v_moe",
        "Glm4vMoeConfig",
        "Glm4vMoeForConditionalGeneration",
        values={"text_config": {"rope_parameters": TEXT_ROPE}},
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "glm5_next",
        "Glm5NextConfig",
        "Glm5NextForConditionalGeneration",
        values={
            "text_config": {
                "layer_types": ["linear_attention", "indexed_attention"],
                "qk_rope_head_dim": 0,
                "head_dim": 0,
                "index_kpool": 2,
            }
        },
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
        chunked=True,
    ),
    Family(
        "glm_moe_dsa",
        "GlmMoeDsaConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.5",
        ),
    ),
    Family("gpt_oss", "GptOssConfig", routers=("top-3, softmax of the chosen",), in_ci=True),
    Family("granitemoe", "GraniteMoeConfig", routers=("top-3, softmax of the chosen",)),
    Family("granitemoe_swa", "GraniteMoeSWAConfig", routers=("top-3, softmax of the chosen",)),
    Family(
        "granitemoehybrid",
        "GraniteMoeHybridConfig",
        values={
            "layer_types": LINEAR_THEN_FULL,
            "mamba_n_heads": 8,
            "mamba_d_state": 16,
            "mamba_chunk_size": 8,
            "shared_intermediate_size": 40,
        },
        routers=("top-3, softmax of the chosen",),
    ),
    Family(
        "granitemoeshared",
        "GraniteMoeSharedConfig",
        values={"shared_intermediate_size": 40},
        routers=("top-3, softmax of the chosen",),
    ),
    Family("hunyuan_v1_moe", "HunYuanMoEV1Config", routers=("softmax top-1, renormalized",)),
    Family(
        "hy_v3",
        "HYV3Config",
        routers=("sigmoid + bias top-3, renormalized (sum + 1e-20), x 2.826",),
    ),
    Family(
        "hy_v4",
        "HYV4Config",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.827",
        ),
    ),
    Family("inkling", "InklingTextConfig", routers=("own operators",)),
    Family(
        "inkling2",
        "Inkling2TextConfig",
        routers=("sigmoid + bias top-3, renormalized (sum + 1e-20), x 8",),
        in_ci=True,
    ),
    Family(
        "jamba",
        "JambaConfig",
        values={
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
        routers=("softmax top-3",),
        chunked=True,
    ),
    Family(
        "kimi_linear",
        "KimiLinearConfig",
        values={"layer_types": LINEAR_THEN_FULL},
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, "
            "renormalized (sum + 1e-20), x 2.446",
        ),
        chunked=True,
    ),
    Family("kolibri1", "Kolibri1Config", routers=("+ bias top-3, sigmoid of the chosen",)),
    Family(
        "laguna",
        "LagunaConfig",
        values={"moe_router_logit_softcapping": 2.0},
        routers=("sigmoid + bias top-3, renormalized",),
    ),
    Family(
        "lfm2_moe",
        "Lfm2MoeConfig",
        values={"num_dense_layers": 0, "layer_types": ["conv", "full_attention"]},
        routers=("sigmoid + bias top-3, renormalized (sum + 1e-06)",),
    ),
    Family("mellum", "MellumConfig", routers=("softmax top-3, renormalized",)),
    Family(
        "mimo_v2_flash",
        "MiMoV2FlashConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "minimax",
        "MiniMaxConfig",
        values={"layer_types": LINEAR_THEN_FULL},
        routers=("softmax top-3, renormalized",),
        chunked=True,
    ),
    Family("minimax_m2", "MiniMaxM2Config", routers=("sigmoid + bias top-3, renormalized",)),
    Family(
        "minimax_m3_vl",
        "MiniMaxM3VLTextConfig",
        routers=("sigmoid + bias top-3, renormalized",),
        in_ci=True,
    ),
    Family(
        "mistral4",
        "Mistral4Config",
        "Mistral4ForCausalLM",
        routers=(
            "softmax top-3, 2 of 4 groups by their two best, others 0, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "mistral_large4",
        "MistralLarge4Config",
        "MistralLarge4ForConditionalGeneration",
        values={
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            }
        },
        routers=(
            "softmax top-3, 2 of 4 groups by their two best, others 0, renormalized (sum + 1e-20)",
        ),
    ),
    Family("mixtral", "MixtralConfig", routers=("softmax top-3, renormalized",), in_ci=True),
    Family(
        "muse_spark",
        "MuseSparkConfig",
        "MuseSparkForConditionalGeneration",
        values={
            "text_config": {"moe_hidden_size": 40, "layer_types": SLIDING_THEN_FULL},
            "audio_config": {
                "num_hidden_layers": 4,
                "hidden_sizes": [8, 8, 8, 8],
                "out_hidden_size": 64,
            },
            "out_hidden_size": 64,
        },
        routers=("sigmoid + bias top-3, renormalized (sum + 1e-15)",),
    ),
    Family(
        "nemotron_h",
        "NemotronHConfig",
        values={
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "num_hidden_layers": 4,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "ssm_state_size": 16,
            "chunk_size": 8,
            "use_mamba_kernels": False,
            "moe_shared_expert_intermediate_size": 40,
            "moe_latent_size": 32,
        },
        in_ci=True,
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family("olmoe", "OlmoeConfig", routers=("softmax top-3",)),
    Family(
        "openai_privacy_filter",
        "OpenAIPrivacyFilterConfig",
        "OpenAIPrivacyFilterForTokenClassification",
        routers=("top-3, softmax of the chosen, x 0.333333",),
    ),
    Family(
        "phimoe",
        "PhimoeConfig",
        values={"num_experts_per_tok": 2},
        routers=("own operators",),
        in_ci=True,
    ),
    Family("qwen2_moe", "Qwen2MoeConfig", in_ci=True, routers=("softmax top-3",)),
    Family(
        "qwen3_5_moe",
        "Qwen3_5MoeTextConfig",
        values={"layer_types": LINEAR_THEN_FULL},
        routers=("softmax top-3, renormalized",),
        chunked=True,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeConfig",
        values={"norm_topk_prob": True},
        in_ci=True,
        routers=("softmax top-3, renormalized",),
    ),
    Family(
        "qwen3_next",
        "Qwen3NextConfig",
        values={"layer_types": LINEAR_THEN_FULL},
        routers=("softmax top-3, renormalized",),
        chunked=True,
        in_ci=True,
    ),
    Family(
        "qwen3_omni_moe",
        "Qwen3OmniMoeThinkerConfig",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        values={"vision_start_token_id": 2},
        routers=("softmax top-3, renormalized",),
    ),
    Family(
        "qwen3_vl_moe",
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        in_ci=True,
        routers=("softmax top-3, renormalized",),
    ),
    Family(
        "qwen4_exp",
        "Qwen4ExpTextConfig",
        routers=("softmax top-3, renormalized",),
        chunked=True,
    ),
    Family(
        "solar_open",
        "SolarOpenConfig",
        routers=(
            "sigmoid + bias top-3, 2 of 4 groups by their two best, renormalized (sum + 1e-20)",
        ),
    ),
    Family(
        "unlimited_ocr",
        "UnlimitedOcrConfig",
        "UnlimitedOcrForConditionalGeneration",
        routers=("softmax top-3",),
    ),
    Family(
        "zaya",
        "ZayaConfig",
        values={"num_experts_per_tok": 1, "router_hidden_size": 32},
        in_ci=True,
        routers=("own operators",),
    ),
)
