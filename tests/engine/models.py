"""Small models that engines are built of, and their graphs in NumPy."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import torch
import transformers
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

from moe_export.capture.stage import capture
from moe_export.lower.stage import lower
from moe_export.ops import reference
from moe_export.ops.spec import DOMAIN, GroupedExperts, TopKGating
from moe_export.optimize.stage import optimize
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.recognize.stage import recognize
from moe_export.sources.source import load_module

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}


def mixtral():
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=8))


def qwen3_moe():
    config = transformers.Qwen3MoeConfig(
        **SIZES, num_experts=8, moe_intermediate_size=48, head_dim=16
    )
    return transformers.Qwen3MoeForCausalLM(config)


def deepseek_v3():
    config = transformers.DeepseekV3Config(
        **(SIZES | {"num_key_value_heads": 4}),
        moe_intermediate_size=48,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=0,
        n_shared_experts=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
    )
    return transformers.DeepseekV3ForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(
        **SIZES,
        num_local_experts=8,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.GptOssForCausalLM(config)


class Experts(nn.Module):
    """A layer without transformers' hook: a router and a list of experts, and a dense path."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)) for _ in range(4)
        )
        self.shared = nn.Linear(64, 64)

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if len(token):
                y.index_add_(0, token, expert(x[token]) * weights[token, slot, None])
        return y + self.shared(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.moe, self.out = nn.LayerNorm(64), Experts(), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(x + self.moe(self.norm(x)))


def seeded(make):
    """The model with weights large enough that its layers show in its outputs."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08)
    return model


def lowered(model, tmp_path, dtype, example=None):
    """The graph that an engine is built of, its experts row-major; the model stays as it was."""
    plan = BuildPlan(output=tmp_path, target="tensorrt-rtx", dtype=dtype)
    progress = SilentProgress()
    loaded = load_module(model, example, plan, source="test")
    found = recognize(loaded, progress, keep_going=False)
    graph = lower(capture(loaded, found.blocks, plan, progress), dtype)
    return loaded, optimize(graph, plan, progress)


def op(kind, function):
    """An operator of the contract for ONNX's evaluator, computed by the NumPy reference."""

    class Op(OpRun):
        op_domain = DOMAIN

        def _run(self, *inputs, **attributes):
            plain = {
                name: value.item() if hasattr(value, "item") else value
                for name, value in attributes.items()
                if name in kind.__dataclass_fields__
            }
            return function(kind.from_onnx(plain), inputs)

    Op.__name__ = kind.op_type
    return Op


def _gating(attributes, inputs):
    return reference.top_k_gating(inputs[0], attributes, *inputs[1:])


def _experts(attributes, inputs):
    named = dict(zip(attributes.input_names(), inputs, strict=True))
    return (reference.grouped_experts(**named, attributes=attributes),)


def run_in_numpy(model: ir.Model, inputs):
    """Outputs of a graph by name."""
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    ops = [op(TopKGating, _gating), op(GroupedExperts, _experts)]
    evaluator = ReferenceEvaluator(proto, new_ops=ops)
    names = [value.name for value in model.graph.outputs]
    return dict(zip(names, evaluator.run(None, inputs), strict=True))
