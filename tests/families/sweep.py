"""Compare a bundle with eager at shapes and padded masks that its build did not use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from moe_export.package.bundle import Bundle

# The bar for two layers in float32, whatever the product's own tolerance is.
RELATIVE_ERROR = 2e-5

Side = Literal["left", "right"] | None


@dataclass(frozen=True)
class Case:
    """One call: its batch, its length and the side on which row r is padded by r positions."""

    batch: int
    length: int
    side: Side


CASES = (
    Case(1, 1, None),
    Case(3, 1, None),
    Case(1, 2, None),
    Case(2, 2, "left"),
    Case(1, 13, None),
    Case(3, 13, "left"),
    Case(3, 13, "right"),
    Case(1, 40, None),
    Case(2, 40, "left"),
    Case(2, 40, "right"),
)

# Around the borders of chunks of 16, 32, 64 and 256 tokens.
CHUNKED_CASES = (
    *CASES,
    Case(2, 16, "left"),
    Case(1, 33, None),
    Case(1, 63, None),
    Case(2, 64, "right"),
    Case(3, 65, "left"),
    Case(2, 130, "right"),
    Case(1, 200, None),
    Case(2, 300, "left"),
)


def masked_inputs(case: Case, vocabulary: int = 128) -> dict[str, Tensor]:
    """Ids and a mask that pads row r by r positions."""
    generator = torch.Generator().manual_seed(case.batch * 100 + case.length)
    mask = torch.ones(case.batch, case.length, dtype=torch.int64)
    for row in range(1, case.batch):
        lost = min(row, case.length - 1)
        if case.side and lost:
            mask[row, slice(None, lost) if case.side == "left" else slice(-lost, None)] = 0
    ids = torch.randint(3, vocabulary, (case.batch, case.length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def sweep_errors(
    model: nn.Module, bundle: Bundle, cases: tuple[Case, ...] = CASES
) -> dict[Case, float]:
    """The largest difference of the logits at kept positions, relative to the largest logit."""
    return {case: _error(model, bundle, masked_inputs(case)) for case in cases}


def _error(model: nn.Module, bundle: Bundle, inputs: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        expected = model(**inputs, **_constants(model)).logits.numpy()
    found = bundle.run({name: t.numpy() for name, t in inputs.items()})["logits"]
    kept = inputs["attention_mask"].numpy().astype(bool)
    difference = np.abs(found[kept] - expected[kept]).max()
    return float(difference / np.abs(expected[kept]).max())


def _constants(model: nn.Module) -> dict[str, bool]:
    """Without a cache where the model would make one."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}
