"""Large weights lie in files that have no name, and a full disk is said before work begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import moe_export
from moe_export.errors import MoeExportError
from moe_export.package import write
from moe_export.sources import file_backed
from tests.lower.test_layers import Plain

LARGE = (3, 1024, 1024)


def anonymous(tensor):
    """Whether the kernel's map of the process shows no file behind the tensor's memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        (
            span,
            *_,
        ) = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return ".moe-export." not in line
    raise AssertionError("not mapped")


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return [torch.randn(1024, 1024) for _ in range(3)]


def test_large_weights_lie_in_files_inside_the_block_only(parts, tmp_path):
    assert anonymous(file_backed.stack(parts))
    with file_backed.weights_in_files(tmp_path / "not" / "there" / "yet"):
        stacked = file_backed.stack(parts)
        assert not anonymous(stacked)
        assert anonymous(file_backed.stack([part[:8] for part in parts]))
    assert anonymous(file_backed.empty(LARGE, torch.float32))
    assert torch.equal(stacked, torch.stack(parts))  # it outlives the block


def test_nothing_is_left_in_the_folder(parts, tmp_path):
    with file_backed.weights_in_files(tmp_path):
        kept = file_backed.stack(parts)
        assert list(tmp_path.iterdir()) == []
    assert kept.shape == LARGE


@pytest.mark.parametrize("dim", [0, 1])
def test_cat_and_copy_equal_torch(parts, dim, tmp_path):
    with file_backed.weights_in_files(tmp_path):
        assert torch.equal(file_backed.cat(parts, dim), torch.cat(parts, dim))
        copied = file_backed.copy(parts[0].T, torch.float64)
    assert torch.equal(copied, parts[0].T.double())


def test_no_room_for_a_tensor_is_an_error_that_says_so(parts, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with file_backed.weights_in_files(tmp_path), pytest.raises(MoeExportError, match="no room for"):
        file_backed.stack(parts)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_the_model_is_recognized(tmp_path, monkeypatch):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    model = torch.nn.Sequential(Plain("moe"))
    with pytest.raises(MoeExportError, match=r"0\.00 GB free; the bundle's weights alone take"):
        moe_export.build(model, torch.randn(4, 6), output=tmp_path / "deep" / "b")
    assert list(tmp_path.iterdir()) == []


def test_stored_bytes_are_those_of_the_format_that_is_read(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "one.safetensors")
    torch.save({"a": torch.zeros(10)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    size = (tmp_path / "one.safetensors").stat().st_size
    assert file_backed.stored_bytes(tmp_path) == size
    assert file_backed.stored_bytes(tmp_path / "one.safetensors") == size
    assert file_backed.stored_bytes(Path("my_code:make")) == 0
