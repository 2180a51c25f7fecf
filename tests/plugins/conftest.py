"""Fixtures of the plugins' tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng():
    """Random numbers, the same in every test."""
    return np.random.default_rng(0)
