"""Models that several folders of tests export."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


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
