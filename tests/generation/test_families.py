"""Greedy generation of whole models, in a process that never imports PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

NEW_TOKENS = 64
RUN = f"""
import sys
import numpy as np
import moe_export

given = np.load("prompts.npz")
bundle = moe_export.load(sys.argv[1])
tokens = {{
    name: bundle.generate(
        given[name], given["mask_" + name], max_new_tokens={NEW_TOKENS}, eos_token_id=[]
    )
    for name in ("one", "batch")
}}
assert "torch" not in sys.modules, "torch was imported"
assert "transformers" not in sys.modules, "transformers was imported"
np.savez("tokens.npz", **tokens)
"""


@pytest.mark.parametrize(
    "family",
    [
        "gpt_oss",  # a sliding window of 8 tokens in every other layer
        "deepseek_v3",  # keys and values of different widths
        pytest.param("mixtral", marks=pytest.mark.slow),  # a window of 8 tokens in every layer
        pytest.param("qwen3_moe", marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_are_eagers(export, prompts, family, tmp_path):
    """64 tokens behind one token, and behind a batch that is padded on the left."""
    exported = export(family)
    drawn = {"one": prompts(1, 1), "batch": prompts(3, 21)}
    arrays = {name: ids for name, (ids, _) in drawn.items()}
    arrays |= {f"mask_{name}": mask for name, (_, mask) in drawn.items()}
    np.savez(tmp_path / "prompts.npz", **arrays)
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(exported.bundle.folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = np.load(tmp_path / "tokens.npz")
    for name, (ids, mask) in drawn.items():
        expected = exported.eager(ids, mask, max_new_tokens=NEW_TOKENS)
        assert found[name].shape == (len(ids), ids.shape[1] + NEW_TOKENS)
        np.testing.assert_array_equal(found[name], expected)


def test_parity_compares_decode_steps_and_windows(exported):
    parity = exported.bundle.parity()
    names = [case["name"] for case in parity["cases"]]
    assert parity["passed"]
    assert "batch 2, 64+2*1+3 tokens" in names
    assert "batch 2, 11+2*1+2 tokens" in names  # a prompt that is longer than the window
    assert all({"logits", "cache"} <= set(case["errors"]) for case in parity["cases"])
    assert all(layer["tokens"] > 200 for layer in parity["layers"])
