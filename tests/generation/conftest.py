"""One bundle with a cache per family and session."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moe_export
from tests.families.all_families import make_named_model

pytest.importorskip("transformers")


class Exported:
    """A family's model and its bundle.

    Args:
        family: A name of ``tests.families.all_families``.
        folder: Where the bundle goes.
    """

    def __init__(self, family, folder):
        self.model = make_named_model(family, eos_token_id=None)
        self.bundle = moe_export.build(self.model, output=folder / "bundle", with_past=True)

    def eager(self, ids, mask, **options):
        """What transformers' own ``generate`` makes of prompts."""
        with torch.no_grad():
            result = self.model.generate(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy(mask),
                pad_token_id=0,
                **{"do_sample": False, "eos_token_id": None, **options},
            )
        return result.numpy()


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """``export(family)``: the family's model and bundle, built once."""
    known = {}

    def get(family):
        if family not in known:
            known[family] = Exported(family, tmp_path_factory.mktemp(family))
        return known[family]

    return get


@pytest.fixture
def exported(export):
    """The family whose cache is the hardest: every other layer has a window of 8 tokens."""
    return export("gpt_oss")


def draw_prompts(batch, length, *, padded=True, seed=0):
    """Random ids; row r begins with ``3 r`` positions of padding."""
    ids = np.random.default_rng(seed).integers(0, 128, (batch, length))
    mask = np.ones((batch, length), np.int64)
    for row in range(batch if padded else 0):
        mask[row, : min(3 * row, length - 1)] = 0
    return ids, mask


@pytest.fixture
def prompts():
    """``prompts(batch, length, padded=..)``: ids and a mask."""
    return draw_prompts
