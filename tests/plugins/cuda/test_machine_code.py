"""The machine code of every GPU kernel: no spills, asynchronous copies, tensor instructions."""

from __future__ import annotations

import csv
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.plugins.cuda.on_cpu import BUILD

KERNELS = BUILD / "cuda" / "kernels"
TABLE = Path(__file__).parents[3] / "plugins" / "cuda" / "kernels.csv"

# Bytes of shared memory that a block may have; SM80's kernels also run on SM86 and SM89, which have
# least. Triton adds what it reserves on SM90 and later.
SHARED_LIMITS = {
    80: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    120: 99 << 10,
    121: 99 << 10,
}
# What multiplies 16-bit matrices; SM90 and SM100 have instructions of their own from 64 rows on.
FEW_ROWS = "HMMA"
MANY_ROWS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 103: "UTCHMMA", 120: "HMMA", 121: "HMMA"}


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table():
    if not (KERNELS / "kernels.csv").exists():
        pytest.skip(
            "the GPU kernels are not built: no nvcc or triton, or scripts/test.sh did not run"
        )
    return _rows(KERNELS / "kernels.csv")


@cache
def _disassembler():
    settings = (BUILD / "CMakeCache.txt").read_text()
    folder = re.search(r"^MOE_EXPORT_TRITON_FOLDER:\w+=(.*)", settings, re.MULTILINE).group(1)
    return Path(folder) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"


def _instructions(name, target):
    image = KERNELS / "images" / f"{name}_sm{target}.cubin"
    command = [_disassembler(), "-sass", image]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text, re.MULTILINE))


def test_the_recorded_table_is_what_is_built(table):
    """After a change: copy build/tests/cuda/kernels/kernels.csv of a build for all targets."""
    targets = {row["target"] for row in table}
    assert table == [row for row in _rows(TABLE) if row["target"] in targets]


def test_there_are_at_most_300_products():
    assert sum("matmul" in row["name"] for row in _rows(TABLE)) <= 300


def test_no_kernel_needs_a_stack(table):
    assert [row["name"] for row in table if int(row["stack_bytes"]) > 0] == []


def test_shared_memory_and_registers_fit(table):
    for row in table:
        assert int(row["shared_bytes"]) <= SHARED_LIMITS[int(row["target"])], row
        # A multiprocessor has 65536 registers.
        assert int(row["registers"]) * int(row["threads"]) <= 65536, row


@pytest.mark.parametrize(
    "target",
    [t if t in (80, 90) else pytest.param(t, marks=pytest.mark.slow) for t in SHARED_LIMITS],
)
def test_products_copy_asynchronously_and_take_tensor_instructions(table, target):
    rows = [r for r in table if int(r["target"]) == target and "matmul" in r["name"]]
    if not rows:
        pytest.skip(f"there are no kernels for SM{target}: see MOE_EXPORT_CUDA_TARGETS")
    for row in rows:
        name = row["name"]
        found = _instructions(name, target)
        assert found, f"{name} for SM{target} has no instructions that this test can read"
        assert found & {"LDGSTS", "UTMALDG"}, f"{name} for SM{target} copies synchronously"
        assert not found & {"LDL", "STL"}, f"{name} for SM{target} spills"
        if "fp32_fp32" in name:
            continue
        expected = FEW_ROWS if name.endswith("m16") else MANY_ROWS[target]
        assert expected in found, f"{name} for SM{target} does not multiply with {expected}"
