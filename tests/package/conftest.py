"""One bundle per target and session, and a copy of it for each test that damages it."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import moe_export

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def digits():
    """A small classifier with two MoE layers, and an example input."""
    sys.path.insert(0, str(SAMPLES))
    try:
        module = importlib.import_module("digits_moe")
    finally:
        sys.path.remove(str(SAMPLES))
    torch.manual_seed(0)
    return module.DigitsClassifier(hidden_size=16, num_experts=4), torch.randn(6, 64)


@pytest.fixture(scope="session")
def cpu_bundle(digits, tmp_path_factory):
    """Folder of a verified bundle; tests only read it."""
    model, images = digits
    output = tmp_path_factory.mktemp("cpu") / "bundle"
    moe_export.build(model, images, output=output)
    return output


@pytest.fixture(scope="session")
def portable_bundle(digits, tmp_path_factory):
    """Folder of a verified bundle for the portable target; tests only read it."""
    model, images = digits
    output = tmp_path_factory.mktemp("portable") / "bundle"
    moe_export.build(model, images, output=output, target="portable")
    return output


@pytest.fixture
def bundle(cpu_bundle, tmp_path):
    """A copy of ``cpu_bundle`` that a test may damage."""
    return Path(shutil.copytree(cpu_bundle, tmp_path / "bundle"))


@pytest.fixture
def edit_manifest(bundle):
    """``edit(change)``: let ``change`` alter the manifest's values in place."""
    path = bundle / "manifest.json"

    def edit(change):
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit
