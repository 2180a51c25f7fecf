"""Compare a bundle with eager at shapes and padded masks that its build did not use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from moe_export.package.bundle import Bundle
from moe_export.sources.hf_tasks import example_of
from moe_export.sources.model import name_outputs
from moe_export.tolerances import relative_error
from tests.families.catalogue import Family

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


def sweep_errors(family: Family, model: nn.Module, bundle: Bundle) -> dict[str, float]:
    """By case, the largest difference of an output at kept positions, relative to its largest."""
    cases = {"other images": family.inputs(5)} if family.inputs else _texts(family, model)
    return {name: _error(model, bundle, inputs) for name, inputs in cases.items()}


def _texts(family: Family, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    cases = CHUNKED_CASES if family.chunked else CASES
    found = {str(case): masked_inputs(case) for case in cases}
    if model.config.is_encoder_decoder:
        for case in cases:  # a decoder's length is another one, and its padding on the right
            side: Side = "right" if case.side else None
            behind = masked_inputs(Case(case.batch, case.length // 2 + 2, side))
            found[str(case)] |= {f"decoder_{name}": t for name, t in behind.items()}
    return found


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


def _error(model: nn.Module, bundle: Bundle, inputs: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        expected = name_outputs(model(**inputs, **example_of(model, 0).constants))
    found = bundle.run({name: t.numpy() for name, t in inputs.items()})
    errors = [0.0]
    for name, output in found.items():
        kept = _kept(name, output, inputs)
        errors.append(relative_error(output[kept], expected[name].numpy()[kept]))
    assert len(errors) > 1
    return max(errors)


def _kept(name: str, output: np.ndarray, inputs: Mapping[str, Tensor]) -> Any:
    """Positions of an output that a mask keeps: the decoder's own where there is one."""
    names = ["attention_mask"] if name.startswith("encoder") else list(inputs)
    masks = [inputs[n].numpy().astype(bool) for n in names if n.endswith("attention_mask")]
    return masks[-1] if masks and masks[-1].shape == output.shape[:2] else slice(None)
