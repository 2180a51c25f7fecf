"""One bundle per target and session, and a copy of it for each test that damages it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import moe_export


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
