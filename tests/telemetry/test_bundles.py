"""Telemetry of whole models: the same counts as eager's, with and without a rebuilt bundle."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

import moe_export
from moe_export.errors import BundleError, EnvironmentLacksError, UsageError

IMAGES = np.random.default_rng(1).standard_normal((77, 64)).astype(np.float32)


def eager_loads(model, images):
    """Counts and mean softmax of each layer, by hooks on eager's gates."""
    seen = []
    hooks = [
        layer.gate.register_forward_hook(
            lambda gate, args, result: seen.append((gate.router(args[0]).softmax(-1), result[0]))
        )
        for layer in model.layers
    ]
    with torch.no_grad():
        model(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    experts = seen[0][0].shape[-1]
    return [
        (np.bincount(ids.reshape(-1).numpy(), minlength=experts), p.double().mean(0).numpy())
        for p, ids in seen
    ]


def assert_same_loads(found, expected):
    for load, (counts, probability) in zip(found, expected, strict=True):
        assert load.tokens_per_expert.tolist() == counts.tolist()
        np.testing.assert_allclose(load.mean_probability, probability, atol=1e-6)
        assert load.dropped_tokens == 0


@pytest.mark.parametrize("kind", ["counting", "plain"])
def test_load_is_that_of_eager(kind, digits, request):
    bundle = moe_export.load(request.getfixturevalue(kind), num_threads=1)
    loads = bundle.expert_load({"images": IMAGES})
    assert [load.path for load in loads] == ["layers.0", "layers.1"]
    assert_same_loads(loads, eager_loads(digits[0], IMAGES))


def test_run_returns_telemetry_beside_the_models_outputs(counting):
    bundle = moe_export.load(counting, num_threads=1)
    outputs = bundle.run({"images": IMAGES})
    assert list(outputs) == [
        "output",
        *(
            f"layers.{i}.{kind}"
            for i in (0, 1)
            for kind in ("tokens_per_expert", "mean_probability", "dropped_tokens")
        ),
    ]
    loads = bundle.expert_load({"images": IMAGES})
    assert np.array_equal(outputs["layers.1.tokens_per_expert"], loads[1].tokens_per_expert)


def test_manifest_lists_telemetry(counting, plain):
    values = json.loads((counting / "manifest.json").read_text())["telemetry"]
    assert [entry["path"] for entry in values] == ["layers.0", "layers.1"]
    assert values[0]["tokens_per_expert"] == "layers.0.tokens_per_expert"
    assert values[0]["probability"] == "softmax of the router's logits"
    assert json.loads((plain / "manifest.json").read_text())["telemetry"] == []


def test_verification_passes_and_leaves_telemetry_out_of_eagers_outputs(counting):
    bundle = moe_export.load(counting)
    assert bundle.verified
    assert {name for case in bundle.parity()["cases"] for name in case["errors"]} == {"output"}


def test_without_telemetry_the_graph_is_that_of_before(counting, plain):
    """The counting graph begins with the plain one's nodes, and ends with the branch's."""
    nodes, own = (
        [ir.to_proto(node) for node in ir.load(folder / "model.onnx").graph]
        for folder in (counting, plain)
    )
    assert nodes[: len(own)] == own
    assert all("/telemetry/" in node.name for node in nodes[len(own) :])
    assert not any("/telemetry/" in node.name for node in own)
    assert [v.name for v in ir.load(plain / "model.onnx").graph.outputs] == ["output"]


def test_results_are_the_same_bits_with_telemetry(counting, plain):
    first, second = (
        moe_export.load(folder, num_threads=1).run({"images": IMAGES})["output"]
        for folder in (counting, plain)
    )
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["counting", "plain"])
def test_counting_never_imports_torch(kind, request):
    folder = request.getfixturevalue(kind)
    script = (
        "import sys, warnings, numpy as np, moe_export; warnings.simplefilter('ignore');"
        f"loads = moe_export.load({str(folder)!r}).expert_load("
        "{'images': np.ones((3, 64), np.float32)});"
        "assert sum(loads[0].tokens_per_expert) == 6;"
        "assert 'torch' not in sys.modules;"
        f"assert ('onnx_ir' in sys.modules) is {kind == 'plain'}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_is_written_into_a_bundle_that_is_counted(plain):
    before = sorted(path.name for path in plain.rglob("*"))
    moe_export.load(plain).expert_load({"images": IMAGES})
    assert sorted(path.name for path in plain.rglob("*")) == before


def test_without_onnx_ir_it_says_how_to_count(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.delitem(sys.modules, "moe_export.telemetry.outputs", raising=False)
    with pytest.raises(EnvironmentLacksError, match="needs onnx_ir: build with --telemetry, or"):
        moe_export.load(plain).expert_load({"images": IMAGES})


def test_inputs_are_checked_as_in_a_run(counting):
    with pytest.raises(UsageError, match="input images is missing"):
        moe_export.load(counting).expert_load({"pictures": IMAGES})


def test_a_manifest_that_names_other_outputs_is_refused(counting):
    bundle = moe_export.load(counting)
    bundle.manifest.telemetry[0]["dropped_tokens"] = "elsewhere"
    with pytest.raises(BundleError, match="no output elsewhere"):
        bundle.expert_load({"images": IMAGES})


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A tiny Mixtral and its portable bundle with a cache, without telemetry."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    output = tmp_path_factory.mktemp("mixtral") / "bundle"
    moe_export.build(model, output=output, verify=False, with_past=True, target="portable")
    return model, output


def test_a_prompt_is_enough_for_a_bundle_with_a_cache(mixtral):
    ids = np.arange(12).reshape(2, 6)
    bundle = moe_export.load(mixtral[1], num_threads=1)
    [load] = bundle.expert_load({"input_ids": ids})
    [masked] = bundle.expert_load({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert load.total == 2 * 6 * 2
    assert np.array_equal(load.tokens_per_expert, masked.tokens_per_expert)
    with pytest.raises(UsageError, match=r"found \[2, 6\] and \[2, 5\]"):
        bundle.expert_load({"input_ids": ids, "attention_mask": np.ones((2, 5), int)})


def test_padding_counts_as_the_layer_routes_it(mixtral):
    model, folder = mixtral
    random = np.random.default_rng(3)
    inputs = {"input_ids": random.integers(0, 64, (3, 7)), "attention_mask": np.ones((3, 7), int)}
    inputs["attention_mask"][1, :4] = 0
    seen = []
    block = model.model.layers[0].mlp
    hooks = [
        block.experts.register_forward_pre_hook(lambda _, args: seen.append(args[1])),
        block.gate.register_forward_pre_hook(lambda gate, args: seen.append((gate, args[0]))),
    ]
    with torch.no_grad():
        positions = (inputs["attention_mask"].cumsum(1) - 1).clip(0)
        tensors = {n: torch.from_numpy(a) for n, a in {**inputs, "position_ids": positions}.items()}
        model(**tensors)
    for hook in hooks:
        hook.remove()
    (gate, hidden), ids = seen
    counts = np.bincount(ids.reshape(-1).numpy(), minlength=5)
    assert counts.sum() == 3 * 7 * 2  # padding is routed
    logits = hidden.reshape(-1, 16).detach() @ gate.weight.detach().T
    [load] = moe_export.load(folder).expert_load(inputs)
    assert load.tokens_per_expert.tolist() == counts.tolist()
    np.testing.assert_allclose(load.mean_probability, logits.softmax(-1).mean(0), atol=1e-6)
    assert load.path == "model.layers.0.mlp.experts"
