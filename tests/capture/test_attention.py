"""Attention whose heads are rows computes what PyTorch's does, and leaves the cache as it is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from moe_export.capture.attention import attend, heads_as_rows
from moe_export.capture.stage import capture
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.recognize.stage import recognize
from moe_export.sources.source import load_module
from tests.families.all_families import make_named_model

pytest.importorskip("transformers")

BATCH, HEADS, LENGTH, TOTAL, WIDTH = 2, 6, 5, 9, 8


def draw(shared, *, value_width=WIDTH):
    torch.manual_seed(shared)
    query = torch.randn(BATCH, HEADS, LENGTH, WIDTH)
    key = torch.randn(BATCH, shared, TOTAL, WIDTH)
    return query, key, torch.randn(BATCH, shared, TOTAL, value_width)


def draw_mask(kind):
    seen = torch.rand(BATCH, 1, LENGTH, TOTAL) > 0.3
    seen[..., 0] = True
    match kind:
        case "boolean":
            return seen
        case "added":
            return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        case "by head":
            return torch.randn(BATCH, HEADS, LENGTH, TOTAL)
        case "one row":
            return seen[:, :, :1].float().log()
        case "one batch":
            return seen[:1]
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["boolean", "added", "by head", "one row", "one batch"])
@pytest.mark.parametrize("shared", [1, 2, 3, 6])
def test_heads_share_keys_as_in_pytorch(shared, kind):
    query, key, value = draw(shared)
    mask = draw_mask(kind)
    expected = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(attend(query, key, value, mask), expected, atol=1e-5, rtol=1e-5)


def test_scale_and_width_of_values_are_their_own():
    query, key, value = draw(2, value_width=3)
    mask = draw_mask("boolean")
    expected = scaled_dot_product_attention(query, key, value, mask, scale=0.7, enable_gqa=True)
    found = attend(query, key, value, mask, 0.7)
    assert found.shape == (BATCH, HEADS, LENGTH, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [False, -math.inf])
def test_row_that_sees_nothing_is_zero(hidden):
    query, key, value = draw(2)
    mask = torch.full((BATCH, 1, LENGTH, TOTAL), hidden if hidden else False)
    mask[:, :, 1:] = True if hidden is False else 0.0
    found = attend(query, key, value, mask)
    assert (found[:, :, 0] == 0).all()
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(found[:, :, 1:], expected[:, :, 1:], atol=1e-5, rtol=1e-5)


def test_transformers_is_left_as_it_was():
    from transformers.exporters import utils
    from transformers.integrations import sdpa_attention

    before = sdpa_attention.repeat_kv, list(utils._PATCHES["dynamo"])
    with pytest.raises(ZeroDivisionError), heads_as_rows():
        assert sdpa_attention.repeat_kv is not before[0]
        raise ZeroDivisionError
    assert (sdpa_attention.repeat_kv, utils._PATCHES["dynamo"]) == before


@pytest.mark.parametrize("mask", [None, "flat"])
def test_attention_that_does_not_fit_still_repeats_its_keys(mask):
    from transformers.exporters.exporter_onnx import apply_patches

    query, key, value = draw(2)
    given = torch.zeros(LENGTH, TOTAL) if mask else None  # of rank 2
    expected = scaled_dot_product_attention(query, key, value, given, enable_gqa=True)
    with heads_as_rows(), apply_patches("dynamo"):
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=given)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_cache_is_neither_repeated_nor_transposed_by_heads(target):
    """Each step would copy all of it, several times."""
    plan = BuildPlan(output=Path("unused"), with_past=True, target=target)
    model = make_named_model("qwen3_moe", num_hidden_layers=1)
    loaded = load_module(model, None, plan, source="test")
    blocks = recognize(loaded.plain, SilentProgress()).blocks
    graph = capture(loaded, blocks, plan, SilentProgress()).model.graph
    keys, values = (next(v for v in graph.outputs if v.name == f"present.0.{kind}")
                    for kind in ("key", "value"))  # fmt: skip
    assert {node.op_type for node, _ in values.uses()} == {"MatMul"}
    for node, _ in keys.uses():
        assert node.op_type in ("FusedMatMul", "Transpose", "Reshape", "MatMul")
        if node.op_type == "Transpose":
            assert list(node.attributes["perm"].as_ints()) == [0, 1, 3, 2]
    assert not [node for node in graph if node.op_type == "Expand" and _is_large(node)]


def _is_large(node):
    """Whether an ``Expand`` makes heads of something: five axes, as repeated keys had."""
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == 5
