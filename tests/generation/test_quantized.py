"""A quantized checkpoint with a cache and telemetry at once: options that meet in one graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moe_export
from moe_export.pipeline import build_source
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress
from moe_export.sources.source import load_source
from tests.generation.conftest import draw_prompts

pytest.importorskip("transformers")
from tests.sources.quantized_files import write_fp8, write_mxfp4

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("write", [write_mxfp4, write_fp8])
def test_greedy_tokens_and_expert_load_of_a_quantized_checkpoint(write, tmp_path):
    write(tmp_path / "source")
    plan = BuildPlan(output=tmp_path / "bundle", with_past=True, telemetry=True)
    build_source(str(tmp_path / "source"), plan, SilentProgress())
    bundle = moe_export.load(tmp_path / "bundle")
    assert bundle.verified
    assert bundle.manifest.telemetry
    model = load_source(str(tmp_path / "source"), BuildPlan(output=tmp_path / "unused")).model
    ids, mask = draw_prompts(2, 11)
    ids %= 64
    with torch.no_grad():
        expected = model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    found = bundle.generate(ids, mask, max_new_tokens=24, eos_token_id=())
    np.testing.assert_array_equal(found, expected.numpy())
