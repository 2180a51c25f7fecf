"""What the exported graph looks like."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

import moe_export
from tests.families.all_families import make_named_model

pytest.importorskip("transformers")


def nodes_of(folder):
    return list(ir.load(folder / "model.onnx").graph)


def test_node_count_does_not_depend_on_the_number_of_experts(tmp_path):
    counts = {}
    for num_experts in (8, 128):
        folder = tmp_path / str(num_experts)
        moe_export.build(
            make_named_model("qwen3_moe", num_experts=num_experts),
            output=folder,
            verify=False,
        )
        nodes = nodes_of(folder)
        counts[num_experts] = len(nodes)
        assert sum(node.op_type == "GroupedExperts" for node in nodes) == 2
    assert counts[8] == counts[128]


def test_batch_and_sequence_are_dynamic(tmp_path):
    bundle = moe_export.build(make_named_model("mixtral"), output=tmp_path / "bundle", verify=False)
    assert [(v["name"], list(v["shape"])) for v in bundle.manifest.inputs] == [
        ("input_ids", ["batch", "sequence"]),
        ("attention_mask", ["batch", "sequence"]),
    ]
    assert list(bundle.manifest.outputs[0]["shape"]) == ["batch", "sequence", 128]


def test_portable_target_needs_no_library(tmp_path):
    import onnxruntime

    model = make_named_model("gpt_oss")
    bundle = moe_export.build(model, output=tmp_path / "bundle", target="portable")
    assert bundle.verified
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx")
    ids = torch.randint(128, (2, 9))
    mask = torch.ones_like(ids)
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.numpy()
    assert abs(found - expected).max() <= 2e-5 * abs(expected).max()


def test_half_precision_checkpoint_is_compared_in_both_precisions(tmp_path):
    model = make_named_model("mixtral").to(torch.bfloat16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    bundle = moe_export.build(model, output=tmp_path / "bundle")
    parity = bundle.parity()
    assert bundle.verified
    assert parity["source_dtype"] == "bfloat16"
    # Larger than any float32 error: bfloat16 itself routes some tokens otherwise.
    assert parity["source_dtype_error"] > 1e-4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
