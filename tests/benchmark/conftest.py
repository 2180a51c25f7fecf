"""A bundle of two MoE layers and a generative one, both once per session."""

from __future__ import annotations

import pytest

import moe_export
from moe_export.pipeline import build_source
from moe_export.plan import BuildPlan
from moe_export.progress import SilentProgress


@pytest.fixture(scope="session")
def digits_bundle(digits, tmp_path_factory):
    """Folder of a verified bundle that takes ``images [batch, 64]``; tests only read it."""
    output = tmp_path_factory.mktemp("bench") / "bundle"
    moe_export.build(*digits, output=output)
    return output


@pytest.fixture(scope="session")
def text_source(tmp_path_factory):
    """A Hugging Face folder with a causal model of one layer."""
    pytest.importorskip("transformers")
    from tests.families.all_families import make_named_model

    folder = tmp_path_factory.mktemp("bench_source")
    make_named_model("qwen3_moe", num_hidden_layers=1, eos_token_id=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_bundle(text_source, tmp_path_factory):
    """Folder of an unverified bundle of it with its cache; tests only read it."""
    output = tmp_path_factory.mktemp("bench_text") / "bundle"
    plan = BuildPlan(output=output, with_past=True, verify=False)
    return build_source(str(text_source), plan, SilentProgress()).folder
