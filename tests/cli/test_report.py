"""What a table of layers says about their routers."""

from __future__ import annotations

import io

from rich.console import Console

from moe_export.cli.report import draw_layers, draw_signature

EXPERTS = {
    "num_experts": 8, "hidden_size": 64, "intermediate_size": 128, "activation": "silu",
    "gated": True,
}  # fmt: skip
FUSED = {"router": "TopKGating", "gating": {"top_k": 2}, "routing": "softmax top-2"}
PLAIN = {"router": "standard operators", "gating": None}


def drawn(*routers):
    layers = [
        {"path": f"layers.{i}", "kind": "module list", "experts": EXPERTS, **router}
        for i, router in enumerate(routers)
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    draw_layers(console, layers)
    return console.export_text()


def test_fused_router_is_told_in_words():
    text = drawn(FUSED)
    assert "softmax top-2" in text
    assert "stays" not in text


def test_reason_stands_once_for_all_layers_that_it_holds_for():
    reason = "tokens depend on each other"
    text = drawn({**PLAIN, "routing": reason}, FUSED, {**PLAIN, "routing": reason})
    assert text.count(reason) == 1
    assert f"router of layers.0 and 1 more stays standard operators: {reason}" in text


def test_bundle_of_an_earlier_version_has_no_words():
    text = drawn({k: v for k, v in FUSED.items() if k != "routing"}, PLAIN)
    assert "TopKGating" in text
    assert "stays" not in text


def test_a_cache_is_one_line_of_the_signature():
    names = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    manifest = {
        "inputs": [
            {"name": name, "dtype": "tensor(float)", "shape": ["batch", 2, "past_sequence", 16]}
            for name in ("input_ids", *(f"past_key_values.{n}" for n in names))
        ],
        "outputs": [{"name": f"present.{n}", "dtype": "", "shape": []} for n in names],
        "generation": {
            "caches": [
                {
                    "past": f"past_key_values.{name}",
                    "present": f"present.{name}",
                    "sliding_window": 8 if name.startswith("0") else None,
                }
                for name in names
            ],
            "tokenizer": None,
        },
    }
    console = Console(file=io.StringIO(), width=80)
    draw_signature(console, manifest)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "input   input_ids: tensor(float) [batch, 2, past_sequence, 16]",
        "cache   4 tensors, past_key_values.0.key to present.1.value; 2 of them seen through a "
        "window of 8 tokens; no tokenizer",
    ]
