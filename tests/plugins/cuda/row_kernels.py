"""The CUDA C++ kernels, launched as row_launches.cpp and top_k_gating.cpp launch them."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import get_args

import numpy as np

from moe_export.ops import spec
from tests.ptx.arguments import Struct
from tests.ptx.run import load_kernels

THREADS = 256
SCAN_THREADS = 1024
SORT_PAIRS = 256
UNWRITTEN = -99
_ENUMERATIONS = {
    name: get_args(getattr(spec, name))
    for name in ("ScoreFunction", "GroupScore", "ExcludedScore", "WeightFunction", "EpsilonMode")
}


class RowKernels:
    """Kernels by name; every launch has another order of blocks and threads.

    Args:
        text: PTX.
        sanitize: As `tests.ptx.run.load_kernel` takes it.
    """

    def __init__(self, text: str, sanitize: str = "") -> None:
        self._kernels = load_kernels(text, sanitize=sanitize)
        self._seeds = itertools.count()

    def run(self, name, grid, threads, shared_bytes, *members):
        """Launch it with the one structure that it takes."""
        call = structure(*members)
        self._kernels[name].launch(grid, threads, shared_bytes, [call], next(self._seeds))

    def gating(self, name, attributes, logits, bias):
        tokens, experts = logits.shape
        ids = np.full((tokens, attributes.top_k), UNWRITTEN, np.int32)
        weights = np.full(ids.shape, UNWRITTEN, np.float32)
        warps = min(4, max(1, (48 << 10) // (12 * experts)))
        sizes = (_blocks(tokens, warps), 32 * warps, 12 * experts * warps)
        members = (*attribute_members(attributes), logits, bias, ids, weights)
        self.run(name, *sizes, *members, np.int32(tokens), np.int32(experts))
        return ids, weights

    def sort(self, name, call):
        """One of the kernels that take an ExpertSortCall; see `SortCall`."""
        blocks, words = _blocks(call.expert_ids.size, SORT_PAIRS), 4 * call.num_experts
        grid, threads, shared = {
            "sort_few_pairs": (1, SORT_PAIRS, 2 * words + 4 * SORT_PAIRS),
            "count_pairs": (blocks, SORT_PAIRS, words),
            "scan_counts": (1, SCAN_THREADS, 2 * words),
            "place_pairs": (blocks, SORT_PAIRS, 4 * SORT_PAIRS),
        }[name]
        self.run(name, grid, threads, shared, *call.members())

    def tiles(self, ends, num_rows, tile_rows, most_tiles):
        sane = np.full_like(ends, UNWRITTEN)
        tiles = np.full(4 + 2 * most_tiles, UNWRITTEN, np.int32)
        sizes = [np.int32(n) for n in (ends.size, num_rows, tile_rows)]
        self.run("list_row_tiles", 1, SCAN_THREADS, 8 * ends.size, ends, sane, tiles, *sizes)
        return sane, tiles

    def row_experts(self, ends, num_rows):
        experts = np.full(num_rows, UNWRITTEN, np.int32)
        grid = _blocks(num_rows, THREADS)
        sizes = (np.int32(ends.size), np.int32(num_rows))
        self.run("name_row_experts", grid, THREADS, 0, ends, experts, *sizes)
        return experts

    def copy(self, name, from_, to, sources, used, divisor, width, to_width):
        """Into ``to``, ``[rows, stride]``."""
        strides = [np.int64(0 if from_ is None else from_.shape[1]), np.int64(to.shape[1])]
        sizes = [np.int32(n) for n in (divisor, len(to), width, to_width)]
        grid = (len(to), _blocks(to_width, THREADS))
        self.run(name, grid, THREADS, 0, from_, to, sources, used, *strides, *sizes)

    def combine(self, name, rows, row_map, weights, width, dtype):
        y = np.full((len(row_map), width), UNWRITTEN, dtype)
        sizes = [np.int32(n) for n in (len(rows), *row_map.shape, width)]
        grid = (len(row_map), _blocks(width, THREADS))
        stride = np.int64(rows.shape[1])
        self.run(name, grid, THREADS, 0, rows, row_map, weights, y, stride, *sizes)
        return y


class SortCall:
    """The arrays of an ExpertSortCall; what kernels write is `UNWRITTEN` until then."""

    def __init__(self, expert_ids, first_expert, num_experts, tile_rows):
        pairs = expert_ids.size
        self.expert_ids, self.first_expert = expert_ids, first_expert
        self.num_experts, self.tile_rows = num_experts, tile_rows
        blank = lambda *shape: np.full(shape, UNWRITTEN, np.int32)  # noqa: E731
        self.counts = blank(_blocks(pairs, SORT_PAIRS), num_experts)
        self.rows, self.pairs, self.ends = blank(pairs), blank(pairs), blank(num_experts)
        most_tiles = pairs // max(tile_rows, 1) + min(pairs, num_experts)
        self.tiles = blank(4 + 2 * most_tiles) if tile_rows else None

    def members(self):
        is_wide = np.int32(self.expert_ids.dtype == np.int64)
        sizes = [np.int32(n) for n in (self.expert_ids.size, self.num_experts, self.tile_rows)]
        arrays = (self.counts, self.rows, self.pairs, self.ends, self.tiles)
        return (self.expert_ids, np.int64(self.first_expert), is_wide, *sizes, *arrays)


def structure(*members):
    """A C++ structure of these members in order: arrays or None for pointers, and numbers."""
    placed, at = {}, 0
    for member in members:
        size = member.itemsize if isinstance(member, np.generic) else 8
        at += -at % size
        placed[at] = member
        at += size
    return Struct(placed, at + -at % 8)


def attribute_members(attributes):
    """The members of ``TopKGatingAttributes``, the last one filled up to a multiple of 8 bytes."""
    numbers = {"int": np.int64, "float": np.float32, "bool": np.bool_}
    members = []
    for each in fields(attributes):
        value = getattr(attributes, each.name)
        values = _ENUMERATIONS.get(each.type)
        members.append(
            numbers[each.type](value) if values is None else np.int32(values.index(value))
        )
    return members


def _blocks(items, threads):
    return -(-items // threads)
