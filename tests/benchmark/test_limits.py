"""The machine's limits are measured by the op library."""

from __future__ import annotations

import math

import pytest

from moe_export.benchmark.limits import Limits, count_cores
from moe_export.errors import EnvironmentLacksError


def test_every_limit_is_a_rate():
    limits = Limits(1)
    assert math.isfinite(limits.read_bandwidth(1))
    assert limits.read_bandwidth(1) > 0
    for weight_type in ("fp32", "fp16", "bf16", "int8", "int4", "mxfp4"):
        rate, name = limits.multiply_rate(weight_type)
        assert rate > 0
        assert name in ("float32", "bfloat16", "int8")


def test_full_precision_multiplies_in_float32():
    limits = Limits(1)
    assert {limits.multiply_rate(kind)[1] for kind in ("fp32", "fp16")} == {"float32"}


def test_reads_go_on_where_the_last_one_ended():
    """The same bytes again would be in the cache."""
    limits = Limits(1)
    places = set()
    limits._read = lambda start, size, threads: places.add(start) or float(size)
    limits._read_once(64 << 20)
    limits._read_once(64 << 20)
    assert len(places) == 2


def test_there_is_a_core():
    assert count_cores() >= 1


def test_older_library_is_refused(monkeypatch, tmp_path):
    import ctypes.util

    name = ctypes.util.find_library("m")  # any library without these functions
    if name is None:
        pytest.skip("needs the C library's mathematics")
    monkeypatch.setattr("moe_export.benchmark.limits.ort_library_path", lambda: name)
    with pytest.raises(EnvironmentLacksError, match="install again"):
        Limits(1)
