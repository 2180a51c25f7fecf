"""Checkpoint layouts: NumPy and PyTorch undo them alike, to the rows the contract asks for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from moe_export.ops.layout import SourceLayout

NUM_EXPERTS, HIDDEN, INTERMEDIATE = 3, 5, 4
ROW_MAJOR = {
    "up_weight": (NUM_EXPERTS, 2 * INTERMEDIATE, HIDDEN),
    "down_weight": (NUM_EXPERTS, HIDDEN, INTERMEDIATE),
    "up_bias": (NUM_EXPERTS, 2 * INTERMEDIATE),
    "down_bias": (NUM_EXPERTS, HIDDEN),
}
LAYOUTS = [SourceLayout(t, i) for t, i in itertools.product([False, True], repeat=2)]


def store(layout, name, array):
    """``array`` as a checkpoint of ``layout`` has it, written without the code under test."""
    if layout.interleaved and name in ("up_weight", "up_bias"):
        stored = np.empty_like(array)
        stored[:, 0::2], stored[:, 1::2] = array[:, :INTERMEDIATE], array[:, INTERMEDIATE:]
        array = stored
    if layout.transposed and name.endswith("weight"):
        array = np.ascontiguousarray(array.transpose(0, 2, 1))
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROW_MAJOR)
def test_numpy_and_torch_give_the_same_row_major_tensor(layout, name):
    shape = ROW_MAJOR[name]
    expected = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    stored = store(layout, name, expected)
    np.testing.assert_array_equal(layout.to_row_major(name, stored), expected)
    from_torch = layout.to_row_major(name, torch.from_numpy(stored))
    np.testing.assert_array_equal(from_torch.numpy(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROW_MAJOR)
def test_shape_is_known_without_the_tensor(layout, name):
    stored = store(layout, name, np.zeros(ROW_MAJOR[name], np.float32))
    assert layout.row_major_shape(name, stored.shape) == ROW_MAJOR[name]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ROW_MAJOR)
def test_changes_says_whether_the_tensor_moves(layout, name):
    array = np.arange(np.prod(ROW_MAJOR[name])).reshape(ROW_MAJOR[name])
    stored = store(layout, name, array)
    moved = stored.shape != array.shape or not np.array_equal(stored, array)
    assert layout.changes(name) == moved


@pytest.mark.parametrize("name", ["x", "expert_ids", "expert_weights"])
def test_other_inputs_stay(name):
    layout = SourceLayout(transposed=True, interleaved=True)
    array = np.arange(12).reshape(3, 4)
    assert not layout.changes(name)
    assert layout.to_row_major(name, array) is array
    assert layout.row_major_shape(name, array.shape) == array.shape
