"""transformers' loading, one parameter at a time, each into a file as soon as it is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_export.sources import file_backed

# Otherwise threads read every tensor of the checkpoint ahead.
_IN_TURN = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def parameters_in_files() -> Iterator[None]:
    """Let transformers put each parameter that it loads where ``file_backed`` says.

    It merges a checkpoint's experts into one tensor and has no other place to say where that goes.
    """
    from transformers import core_model_loading as loading

    before, own = os.environ.get(_IN_TURN), loading.set_param_for_module

    def place(model: Any, name: str, value: Any, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
        if isinstance(value, Tensor) and value.is_floating_point() and value.itemsize >= 2:
            with torch.no_grad():
                value = file_backed.copy(value, value.dtype)
        return own(model, name, value, *rest, **options)

    os.environ[_IN_TURN] = "1"
    loading.set_param_for_module = place
    try:
        yield
    finally:
        loading.set_param_for_module = own
        if before is None:
            del os.environ[_IN_TURN]
        else:
            os.environ[_IN_TURN] = before
