"""One graph with every router, and bundles of the digits classifier, for the whole session."""

from __future__ import annotations

import pytest
import torch

import moe_export
from tests.optimize.exported import fuse
from tests.telemetry.routers import CASES


@pytest.fixture(scope="session")
def routers():
    """Every router of ``CASES`` in one graph, before and after fusion."""
    torch.manual_seed(0)
    return fuse({name: case.router for name, case in CASES.items()})


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
