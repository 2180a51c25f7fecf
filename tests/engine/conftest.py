"""What engines are built with here, or why they are not."""

from __future__ import annotations

import importlib.util

import pytest

from moe_export.errors import EnvironmentLacksError
from moe_export.runners.library import plugin_library_path


@pytest.fixture(scope="session")
def plugins():
    """The plugin library; skips where it or TensorRT-RTX is missing."""
    for name in ("tensorrt_rtx", "polygraphy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    try:
        return plugin_library_path()
    except EnvironmentLacksError as error:
        pytest.skip(str(error))
