"""What the CUDA C++ kernels compute: gating, sorting, tiles, copies and sums, each by itself.

`CHECKS` has a function per kernel, without its type's name, which raises an AssertionError where
one of its outputs is not, number by number, what NumPy computes.
"""

from __future__ import annotations

import itertools

import numpy as np

from moe_export.gpu.layers import ELEMENT_DTYPES
from moe_export.ops import reference
from moe_export.ops.spec import TopKGating
from tests.plugins.cuda.row_kernels import SORT_PAIRS, UNWRITTEN, RowKernels, SortCall

_GROUPS = (  # experts, groups, kept groups, experts per token
    *((45, 1, 1, 3), (72, 4, 2, 5), (63, 7, 3, 8), (200, 40, 6, 4), (1, 1, 1, 1), (36, 36, 5, 5)),
    *((1000, 5, 2, 32), (2048, 1, 1, 32), (96, 6, 3, 32), (264, 33, 33, 7), (31, 1, 1, 31)),
    *((77, 11, 4, 5), (60, 20, 7, 4)),
)
_SCORES = ("softmax", "sigmoid", "sqrt_softplus", "identity")
_WEIGHTS = ("score", "softmax", "sigmoid")
_DIVISORS = (
    {"renormalize": False},
    {"renormalize": True},
    {"renormalize": True, "epsilon": 0.3, "scale": 2.5},
    {"renormalize": True, "epsilon": 0.8, "epsilon_mode": "clamp"},
    {"renormalize": True, "epsilon": 1e-20, "epsilon_mode": "clamp", "scale": 0.5},
)


def check_gating(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    forms = [{"score_function": s, "weight_function": w} for s in _SCORES for w in _WEIGHTS]
    for i in range(3) if is_short else range(len(forms) * 3):
        experts, groups, kept, top_k = _GROUPS[(1, 0, 3)[i] if is_short else i % len(_GROUPS)]
        attributes = TopKGating(
            top_k=top_k,
            num_groups=groups,
            top_groups=kept,
            group_score="top2_sum" if i % 2 and experts > groups else "max",
            excluded_score="zero" if i % 3 == 1 else "neg_inf",
            has_selection_bias=i % 5 in (1, 2),
            **forms[i % len(forms)],
            **_DIVISORS[i % len(_DIVISORS)],
        )
        _check_router(kernels, name, element, attributes, experts, 2 if is_short else 5)


def _check_router(kernels, name, element, attributes, experts, tokens):
    rng = np.random.default_rng(experts)
    logits = rng.standard_normal((tokens, experts), np.float32) * 2
    if tokens == 5:
        logits[1, experts // 2 :: 7] = np.nan
        logits[1, ::9], logits[1, 1::11] = np.inf, -np.inf
        logits[2] = np.nan
        logits[3] = rng.integers(-2, 3, experts)  # exact ties
        logits[4] -= 30
    if attributes.score_function == "identity" and attributes.renormalize:
        logits = np.abs(logits)  # a sum near zero has no digits to compare
    logits = logits.astype(ELEMENT_DTYPES[element])
    has_bias = attributes.has_selection_bias
    bias = rng.standard_normal(experts).astype(np.float32) if has_bias else None
    ids, weights = kernels.gating(name, attributes, logits, bias)
    expected = reference.top_k_gating(logits.astype(np.float32), attributes, bias)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(weights, expected[1], rtol=1e-5, atol=1e-30)


_SORTS = (  # pairs, experts, rows of a tile, first expert, int64
    *((1, 1, 16, 0, False), (7, 5, 0, 2, True), (100, 300, 16, 0, False), (255, 33, 64, 7, True)),
    *((256, 2048, 16, 1, False), (256, 3, 128, 0, True), (200, 3, 16, 2**33, True)),
    *((257, 5, 16, 0, False), (700, 300, 64, 3, True), (600, 2048, 16, 0, False)),
    *((1030, 3, 0, 0, True), (520, 31, 128, 5, False)),
    # 3, 5 and 7 experts per lane that adds up: what is left of loops that go by four
    *((90, 90, 16, 0, False), (120, 150, 16, 0, True), (301, 90, 16, 0, False)),
    *((303, 150, 16, 0, True), (305, 200, 64, 1, False)),
)
_SHORT_SORTS = ((250, 300, 16, 0, False), (300, 300, 16, 1, True))


def check_sort(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    for pairs, experts, tile, first, is_wide in _SHORT_SORTS if is_short else _SORTS:
        if name == "sort_few_pairs" and pairs > SORT_PAIRS:
            continue
        rng = np.random.default_rng(pairs)
        ids = rng.integers(-1, experts + 1, pairs) + first
        if pairs % 2 == 0:  # most of them to one expert
            ids[rng.random(pairs) < 0.7] = first + experts // 2
        if is_wide:
            ids[::5] += 2**32 * rng.integers(-1, 2, ids[::5].shape)
            ids[:2] = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)[: ids[:2].size]
        ids = ids.astype(np.int64 if is_wide else np.int32)
        given, expected = SortCall(ids, first, experts, tile), SortCall(ids, first, experts, tile)
        counts, firsts = _expect_sort(expected)
        if name == "sort_few_pairs":
            expected.counts[:] = UNWRITTEN
        elif name == "count_pairs":
            expected = SortCall(ids, first, experts, tile)
            expected.counts[:] = counts
        elif name == "scan_counts":
            given.counts[:] = counts
            expected.counts[:] = firsts
            expected.rows[:] = expected.pairs[:] = UNWRITTEN
        else:
            given.counts[:] = expected.counts[:] = firsts
            expected.ends[:] = UNWRITTEN
            expected.tiles = given.tiles
        kernels.sort(name, given)
        for array in ("counts", "rows", "pairs", "ends", "tiles"):
            np.testing.assert_array_equal(getattr(given, array), getattr(expected, array), array)


def _expect_sort(call):
    """Fills in what is written; each block's counts, and first rows, per expert."""
    local = [int(each) - call.first_expert for each in call.expert_ids]
    counts, row = np.zeros_like(call.counts), 0
    firsts = np.zeros_like(counts)
    call.rows[:] = -1
    for e in range(call.num_experts):
        mine = [pair for pair, expert in enumerate(local) if expert == e]
        for block in range(len(counts)):
            firsts[block, e] = row + sum(pair < block * SORT_PAIRS for pair in mine)
        for pair in mine:
            counts[pair // SORT_PAIRS, e] += 1
            call.rows[pair], call.pairs[row] = row, pair
            row += 1
        call.ends[e] = row
    if call.tiles is not None:
        _expect_tiles(call.ends, call.tile_rows, call.tiles)
    return counts, firsts


def _expect_tiles(ends, tile_rows, tiles):
    begins = [0, *ends[:-1]]
    found = [
        (e, row)
        for e, (begin, end) in enumerate(zip(begins, ends, strict=True))
        for row in range(begin, end, tile_rows)
    ]
    tiles[0] = len(found)
    tiles[4 : 4 + 2 * len(found)] = np.reshape(found, -1)


def check_tiles(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    sizes = ((1, 40), (5, 100), (33, 999), (300, 400), (2048, 2500), (40, 0), (90, 99), (150, 60))
    for i, (experts, rows) in enumerate(sizes[3:4] if is_short else sizes):
        rng = np.random.default_rng(experts)
        ends = np.sort(rng.integers(-2, rows + 20, experts)).astype(np.int32)
        ends[experts // 2 :: 9] = -5  # not ascending
        for tile_rows in (16,) if is_short else (16, (64, 128)[i % 2]):
            most_tiles = rows // tile_rows + min(rows, experts)
            sane, tiles = kernels.tiles(ends, rows, tile_rows, most_tiles)
            clamped = np.maximum.accumulate(np.clip(ends, 0, rows))
            expected = np.full_like(tiles, UNWRITTEN)
            _expect_tiles(clamped, tile_rows, expected)
            np.testing.assert_array_equal(sane, clamped)
            np.testing.assert_array_equal(tiles, expected)


def check_row_experts(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    sizes = ((1, 3), (2, 300), (7, 600), (2048, 700))
    for experts, rows in sizes[:2] if is_short else sizes:
        rng = np.random.default_rng(experts)
        ends = np.sort(rng.integers(0, rows, experts)).astype(np.int32)
        found = kernels.row_experts(ends, rows)
        expected = np.searchsorted(ends, np.arange(rows), "right").clip(0, experts - 1)
        np.testing.assert_array_equal(found, expected)


def check_copies(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    dtype, rng = ELEMENT_DTYPES[element], np.random.default_rng(0)
    forms = itertools.product((300, 3), (5, 0), (True, False), (4, 0, None))
    for width, more, has_sources, used in itertools.islice(forms, 1 if is_short else None):
        from_ = rng.standard_normal((9, width + more)).astype(dtype)
        to = np.full((6, width + 2 * more), UNWRITTEN, dtype)
        sources = rng.integers(0, 18, 6).astype(np.int32) if has_sources else None
        divisor = 2 if has_sources else 1
        expected = to.copy()
        expected[:, : width + more] = 0
        rows = slice(0, used)
        taken = np.arange(6) if sources is None else sources // divisor
        expected[rows, :width] = from_[taken, :width][rows]
        num_used = None if used is None else np.array([used], np.int32)
        arguments = (to, sources, num_used, divisor, width, width + more)
        kernels.copy(name, from_, *arguments)
        np.testing.assert_array_equal(to, expected)
        to[:] = expected[:] = UNWRITTEN  # from nothing: only rows behind the used ones are written
        if used is not None:
            expected[used:, : width + more] = 0
        kernels.copy(name, None, *arguments)
        np.testing.assert_array_equal(to, expected)


def check_sums(kernels: RowKernels, name: str, element: str, is_short: bool) -> None:
    rng = np.random.default_rng(0)
    dtype = ELEMENT_DTYPES[element]
    row_dtype = np.float32 if name.startswith("combine_experts") else dtype
    forms = itertools.product((7, 1, 2, 8), (300, 3), (True, False))
    for top_k, width, has_weights in itertools.islice(forms, 1 if is_short else None):
        rows = rng.standard_normal((11, width + 3)).astype(row_dtype)
        row_map = rng.integers(-1, 12, (3, top_k)).astype(np.int32)
        weights = rng.standard_normal((3, top_k), np.float32) if has_weights else None
        found = kernels.combine(name, rows, row_map, weights, width, dtype)
        np.testing.assert_array_equal(found, _expect_sums(rows, row_map, weights, width, dtype))


def _expect_sums(rows, row_map, weights, width, dtype):
    """In float32, rounded once per product and sum, in order of k."""
    sums = np.zeros((len(row_map), width), np.float32)
    for (t, k), row in np.ndenumerate(row_map):
        if 0 <= row < len(rows):
            weight = 1 if weights is None else np.float64(weights[t, k])
            sums[t] = (rows[row, :width].astype(np.float64) * weight + sums[t]).astype(np.float32)
    return sums.astype(dtype)


CHECKS = {
    "top_k_gating": check_gating,
    "copy_rows": check_copies,
    "combine_rows": check_sums,
    "combine_experts": check_sums,
    "sort_few_pairs": check_sort,
    "count_pairs": check_sort,
    "scan_counts": check_sort,
    "place_pairs": check_sort,
    "list_row_tiles": check_tiles,
    "name_row_experts": check_row_experts,
}


def check_entry(kernels: RowKernels, name: str, is_short: bool) -> None:
    """One kernel; ``is_short`` leaves out what shows nothing of barriers, and much of the rest."""
    stem, _, element = name.rpartition("_")
    if element in ELEMENT_DTYPES:
        CHECKS[stem](kernels, name, element, is_short)
    else:
        CHECKS[name](kernels, name, "", is_short)
