"""The GPU benchmark on kernels that the CPU runs: what it counts and writes, not its times."""

from __future__ import annotations

import importlib

import pytest

from moe_export.gpu.c_api import KernelResources
from moe_export.gpu.layers import Form, list_forms
from moe_export.ops.storage import WeightStorage
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, HostDevice, LibraryOnCpu

INT4 = Form("bf16", WeightStorage(weight_type="int4", block_size=128))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    measure = importlib.import_module("gpu_bench.measure")
    layers = importlib.import_module("moe_bench.layers")
    library = LibraryOnCpu(80, tmp_path_factory.mktemp("kernels"))
    for tile in (16, 64):
        library.need_form("bf16", INT4.weights, tile)
    return list(measure.measure(library, HostDevice(), layers.LAYERS["tiny"], [INT4], [1, 8]))


def test_work_is_what_the_hit_experts_hold(results):
    one, eight = results
    assert (one.tokens, one.hit, eight.tokens) == (1, 2, 8)
    # Codes of half a byte and float32 scales per 128 of [256, 256] and [256, 128] weights.
    expert = 256 * 256 // 2 + 256 * 2 * 4 + 256 * 128 // 2 + 256 * 4
    assert one.bytes_read == 2 * expert + 2 * 256 * 2
    assert one.operations == 2 * 1 * 2 * 3 * 256 * 128
    assert set(one.tiles_us) == {"16", "64"}


def test_rows_say_how_near_the_limit_a_layer_is(results):
    bench = importlib.import_module("bench_gpu")
    machine = {"copy_bytes_per_second": 1e12, "peak_operations_per_second": 1e8}
    row = bench.list_rows(results, machine)[0]
    limit = results[0].operations / 1e8 * 1e6  # more than reading takes
    assert row[0] == "tiny"
    # The fake device takes 1 µs.
    assert row[-3:-1] == [f"{limit:.1f}", f"{100 * limit:.0f} %"]
    assert row[-1].endswith(" %")
    lines = bench.to_markdown("a GPU", [row]).splitlines()
    assert lines[2].count("|") == lines[4].count("|")


@pytest.mark.parametrize(
    ("threads", "shared_bytes", "registers", "capability", "expected"),
    [
        (256, 64 << 10, 128, 80, 2 * 256 / 2048),  # two blocks of 65 KB
        (128, 0, 255, 90, 2 * 128 / 2048),  # two blocks of 128 · 256 registers
        (128, 30 << 10, 64, 86, 3 * 128 / 1536),
        (32, 0, 16, 80, 32 * 32 / 2048),  # no more than 32 blocks
        (128, 0, 0, 80, None),  # PTX
        (128, 0, 64, 75, None),
    ],
)
def test_occupancy(threads, shared_bytes, registers, capability, expected):
    limits = importlib.import_module("gpu_bench.limits")
    kernel = KernelResources(threads, shared_bytes, registers, 64)
    assert limits.occupancy(kernel, capability) == expected


def test_forms_of_the_benchmark_exist():
    bench = importlib.import_module("bench_gpu")
    assert set(bench.FORMS) <= {str(form) for form in list_forms()}
