"""One graph with every router, and bundles of the digits classifier, for the whole session."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import moe_export
from tests.optimize.exported import fuse
from tests.telemetry.routers import CASES

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def routers():
    """Every router of ``CASES`` in one graph, before and after fusion."""
    torch.manual_seed(0)
    return fuse({name: case.router for name, case in CASES.items()})


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
def counting(digits, tmp_path_factory):
    """Folder of a verified bundle with telemetry; tests only read it."""
    output = tmp_path_factory.mktemp("counting") / "bundle"
    moe_export.build(*digits, output=output, telemetry=True)
    return output


@pytest.fixture(scope="session")
def plain(digits, tmp_path_factory):
    """Folder of the same bundle without telemetry; tests only read it."""
    output = tmp_path_factory.mktemp("plain") / "bundle"
    moe_export.build(*digits, output=output, verify=False)
    return output
