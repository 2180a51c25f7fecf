"""The GPU's self-test, on kernels that the CPU runs."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from moe_export.gpu.layers import Form, list_forms
from moe_export.gpu.self_test import list_checks
from moe_export.ops.storage import WeightStorage
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, HostDevice, LibraryOnCpu
from tests.plugins.cuda.test_machine_code import TABLE

FORM = Form("bf16", WeightStorage(weight_type="int4", block_size=128, has_zero_point=True))


class WrongDevice(HostDevice):
    """Gives back results with one number changed, or none at all."""

    def __init__(self, wrong):
        super().__init__()
        self._wrong = wrong

    def download(self, address, like):
        copy = super().download(address, like)
        if copy.dtype != np.int32 and copy.size:
            copy.reshape(-1)[-1] = self._wrong
        return copy


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    library = LibraryOnCpu(80, tmp_path_factory.mktemp("kernels"))
    for tile in (16, 64):
        library.need_form("bf16", FORM.weights, tile)
    return library


def run_checks(library, device):
    return [check() for check in list_checks(library, device, forms=[FORM])]


def test_kernels_that_are_right_pass(library):
    library.use()
    checks = run_checks(library, HostDevice())
    assert [check.kernel for check in checks] == [
        "gating of fp32 logits",
        "gating of fp16 logits",
        "gating of bf16 logits",
        "bf16 x int4, blocks of 128 with zero points, tiles of 16",
        "bf16 x int4, blocks of 128 with zero points, tiles of 64",
    ]
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("wrong", [7.0, np.nan])
def test_a_wrong_number_fails(library, wrong):
    library.use()
    checks = run_checks(library, WrongDevice(wrong))
    assert not any(check.passed for check in checks), checks


def test_every_variant_is_in_the_forms():
    with TABLE.open(newline="") as file:
        products = {row["name"] for row in csv.DictReader(file) if "matmul" in row["name"]}
    built = {name.removeprefix("gated_").rsplit("_", 1)[0] for name in products}
    tested = set()
    for form in list_forms():
        halves = "b32" if form.weights.block_size == 32 else ""
        tested.add(f"matmul_{form.element_type}_{form.weights.weight_type}{halves}")
    assert tested == built
