"""Example inputs: named, drawn, read from a file, and checked against ``forward``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from moe_export.errors import UsageError
from moe_export.plan import InputSpec
from moe_export.sources.inputs import (
    check_names,
    draw_inputs,
    name_inputs,
    num_embedded,
    read_inputs,
)


class Model(nn.Module):
    def forward(self, x, positions, scale=1.0):
        return x + positions * scale


class ModelOfAnything(nn.Module):
    def forward(self, x, **others):
        return x, others


class ModelWithEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 4)
        self.kinds = nn.Embedding(3, 4)

    def forward(self, input_ids):
        return self.words(input_ids)


X, POSITIONS = torch.zeros(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (X, ["x"]),
        ((X, POSITIONS), ["x", "positions"]),
        ([X, POSITIONS, X], ["x", "positions", "scale"]),
        ({"positions": POSITIONS, "x": X}, ["positions", "x"]),
    ],
)
def test_positional_inputs_get_the_names_of_forward(example, names):
    assert list(name_inputs(Model(), example)) == names


def test_too_many_inputs_are_refused_with_the_signature():
    with pytest.raises(UsageError, match=r"4 example inputs for forward\(x, positions, scale\)"):
        name_inputs(Model(), [X] * 4)


@pytest.mark.parametrize("example", [{"positions": np.zeros(2)}, (X, np.zeros(2))])
def test_input_that_is_no_tensor_is_named(example):
    with pytest.raises(UsageError, match="positions must be a tensor; found ndarray"):
        name_inputs(Model(), example)


def test_drawn_inputs_have_shape_and_type_and_follow_the_seed():
    specs = [InputSpec("x", (2, 5)), InputSpec("positions", (3,), "float16")]
    first, again, other = (draw_inputs(Model(), specs, seed) for seed in (0, 0, 1))
    assert {n: (tuple(t.shape), t.dtype) for n, t in first.items()} == {
        "x": ((2, 5), torch.float32),
        "positions": ((3,), torch.float16),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_drawn_ids_are_valid_for_every_embedding(dtype):
    model = ModelWithEmbeddings()
    assert num_embedded(model) == 3
    ids = draw_inputs(model, [InputSpec("input_ids", (40,), dtype)], 0)["input_ids"]
    assert set(ids.tolist()) == {0, 1, 2}
    assert ids.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [("attention_mask", "int64"), ("keep", "bool"), ("mask", "bool")]
)
def test_drawn_masks_keep_everything(name, dtype):
    assert draw_inputs(Model(), [InputSpec(name, (2, 3), dtype)], 0)[name].all()


def test_file_gives_arrays_by_name(tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.float32([[1, 2]]), ids=np.int64([3]))
    read = read_inputs(tmp_path / "inputs.npz")
    assert {n: (t.dtype, t.tolist()) for n, t in read.items()} == {
        "x": (torch.float32, [[1, 2]]),
        "ids": (torch.int64, [3]),
    }


def test_file_with_pickled_objects_is_refused_without_unpickling(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "inputs.npz", x=np.array([Attack()], dtype=object))
    with pytest.raises(UsageError, match=r"inputs\.npz: not a readable \.npz"):
        read_inputs(tmp_path / "inputs.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x80\x04N."])
def test_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "inputs.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"inputs\.npz: not a readable \.npz"):
        read_inputs(tmp_path / "inputs.npz")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.npz"):
        read_inputs(tmp_path / "absent.npz")


def test_missing_input_is_named_with_the_signature_and_the_option():
    with pytest.raises(UsageError) as caught:
        check_names(Model(), {"x": X})
    message = str(caught.value)
    assert "Model.forward(x, positions, scale) needs an example of positions" in message
    assert "--input positions=" in message


def test_unknown_input_is_named_with_the_signature():
    with pytest.raises(UsageError, match=r"forward\(x, positions, scale\) has no argument y"):
        check_names(Model(), {"x": X, "positions": POSITIONS, "y": X})


def test_forward_that_takes_anything_accepts_any_name():
    check_names(ModelOfAnything(), {"x": X, "y": X})


def test_optional_arguments_need_no_example():
    check_names(Model(), {"x": X, "positions": POSITIONS})
