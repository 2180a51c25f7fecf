"""Which results the benchmark holds against each other, and what of it the README shows."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from moe_bench.compare import best_peer, compare
from moe_bench.contenders import Contender
from moe_bench.groups import leave_out, make_groups, release
from moe_bench.layers import Layer, draw_weights
from moe_bench.plot import draw_roofline
from moe_bench.record import Record, read_records, write_record
from moe_bench.results import Refusal, Result
from moe_bench.tables import case_tables, readme_table
from rich.console import Console

LAYER = Layer("small", 64, 32, 4, 2)
VALUES = LAYER.experts * LAYER.expert_values


def result(contender="peer", *, ratio=1.0, error=1e-7, width="fp32", tokens=4, skewed=False):
    return Result(
        layer="small",
        tokens=tokens,
        skewed=skewed,
        contender=contender,
        width=width,
        ours=contender == "ours",
        seconds=0.5 * ratio,
        ratio=ratio,
        error=error,
        hit=4.0,
        bytes_read=1e6,
        operations=10**6,
        read_rate=4e6,
        peak_rate=1e9,
        limit_share=0.5,
    )


def contender(name, width="fp32", *, ours=False, copies=1.0, bits=0.0):
    return Contender(name, width, lambda weights: None, bits, ours, copies)


def test_best_peer_is_the_fastest_of_the_same_case_and_width():
    own = result("ours")
    others = [
        result("slow", ratio=3),
        result("fast", ratio=2),
        result("other width", ratio=1, width="bf16"),
        result("other tokens", ratio=1, tokens=16),
        result("other routing", ratio=1, skewed=True),
    ]
    assert best_peer(own, [own, *others]).contender == "fast"


@pytest.mark.parametrize(
    ("ours", "peer", "allowed"),
    [(1e-2, 1.4e-2, True), (1e-2, 1.6e-2, False), (1e-7, 9e-6, True), (1e-7, 2e-5, False)],
)
def test_peer_with_a_larger_error_is_no_peer(ours, peer, allowed):
    own = result("ours", error=ours)
    assert (best_peer(own, [own, result(error=peer)]) is not None) == allowed


def test_ratio_is_zero_without_a_peer():
    (comparison,) = compare([result("ours")])
    assert comparison.ratio == 0


def test_groups_hold_what_fits_and_always_ours_and_a_peer():
    ours, a, b = contender("ours", ours=True), contender("a"), contender("b", copies=9)
    quantized = contender("c", "int4", bits=4.25)
    copy = VALUES * 4
    assert make_groups([ours, a, b], LAYER, 11 * copy) == [[ours, a, b]]
    assert make_groups([ours, a, b, quantized], LAYER, 2 * copy) == [
        [ours, a],
        [ours, b],
        [quantized],
    ]
    assert make_groups([ours, b, a, a], LAYER, 3 * copy) == [[ours, b], [ours, a, a]]
    assert make_groups([ours], LAYER, 1) == [[ours]]


def test_contender_that_does_not_fit_beside_ours_is_refused_with_its_bytes():
    ours, small, large = contender("ours", ours=True), contender("a"), contender("b", copies=9)
    fitting, (refusal,) = leave_out([ours, small, large], LAYER, 4 * 4 * VALUES)
    assert fitting == [ours, small]
    gigabytes = 9 * 4 * VALUES / 1e9
    assert refusal == Refusal("small", 0, "b", "fp32", f"would hold {gigabytes:.0f} GB")


def test_scales_count_as_bytes_that_are_read():
    assert contender("c", "int4").stored_bytes(16) == 8
    assert contender("c", "int4", bits=4.5).stored_bytes(16) == 9


def test_files_of_a_group_are_deleted_and_the_weights_stay(tmp_path):
    weights = draw_weights(LAYER, tmp_path)
    first = weights.up[0, 0].copy()
    (tmp_path / "copy.bin").write_bytes(b"1")
    release(weights)
    assert {path.name for path in tmp_path.iterdir()} == {"up.bin", "down.bin"}
    assert (weights.up[0, 0] == first).all()


def test_readme_has_a_row_per_case_and_a_column_per_width_of_ours():
    results = [
        result("ours"),
        result("fast", ratio=1.5),
        result("ours", width="int8", error=1e-2),
        result("inexact", width="int8", error=1e-1, ratio=0.5),
        result("alone", width="int4"),
        result("ours", skewed=True),
    ]
    assert readme_table(results).splitlines() == [
        "| layer | tokens | fp32 | int8 |",
        "|---|---|---|---|",
        "| small | 4 | 1.50 fast, 50% | 50% |",
        "| small, skewed | 4 | 50% |  |",
    ]


def test_table_marks_the_best_peer_and_says_who_refuses_and_why():
    results = [result("ours"), result("fast", ratio=1.5), result("slow", ratio=2)]
    refusals = [
        Refusal("small", 4, "greedy", "fp32", "would gather 13 GB of weights"),
        Refusal("small", 16, "later", "fp32", "not at 4 tokens"),
        Refusal("small", 0, "never", "fp32", "not this layer"),
    ]
    (table,) = case_tables(results, refusals)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    text = captured.get()
    assert "fast *" in text
    assert "slow *" not in text
    assert "would gather 13 GB" in text
    assert "not this layer" in text
    assert "later" not in text


def test_runs_on_one_machine_are_read_together_as_they_were_written(tmp_path):
    refusal = Refusal("small", 4, "greedy", "fp32", "would gather 13 GB of weights")
    first = Record({"cpu": "here"}, [result("ours"), result("fast", ratio=1.5)], [refusal])
    second = Record({"cpu": "here"}, [result("ours", tokens=16)], [])
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path, record in zip(paths, (first, second), strict=True):
        write_record(path, record)
    found = read_records(paths)
    assert found == Record({"cpu": "here"}, [*first.results, *second.results], [refusal])


def test_runs_on_two_machines_are_not_one_record(tmp_path):
    paths = [tmp_path / "here.json", tmp_path / "there.json"]
    for path in paths:
        write_record(path, Record({"cpu": path.stem}, [], []))
    with pytest.raises(ValueError, match=r"there\.json is of another machine"):
        read_records(paths)


def test_roofline_has_a_point_per_contender_and_case_and_roofs_above_the_slope():
    pytest.importorskip("matplotlib")
    results = [result("ours"), result("fast", ratio=2), result("ours", width="bf16", tokens=16)]
    (axes,) = draw_roofline(results).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["ours fp32"] == [[1.0, 0.002]]  # 1e6 operations on 1e6 bytes in 0.5 s
    assert lines["fast fp32"] == [[1.0, 0.001]]
    assert lines["ours bf16"] == [[1.0, 0.002]]
    slope = lines["fp32 multiply-adds"]
    assert slope[0] == pytest.approx([0.5, 0.5 * 4e6 / 1e9])
    assert max(y for _, y in slope) <= 1.0  # the peak of 1e9 operations per second
    assert "torch's dense bf16" in lines
