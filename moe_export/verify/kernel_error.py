"""Each expert node on its stored weights against the NumPy reference on the same weights.

Rounding moves a model's outputs by percents, which would hide codes in the wrong order or a scale
of another block. Here both sides have the same numbers, so that only rounding of activations is
left, which has a tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from moe_export.lower.expert_tensor import read_expert
from moe_export.lower.stored_weights import (
    ExpertAttributes,
    expert_nodes,
    input_values,
    stored_parts,
    stored_tensor,
)
from moe_export.ops import reference, reference_rows
from moe_export.ops.dequantize import dequantize
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.spec import GroupedExperts, GroupedMatMul
from moe_export.pack.model_file import PackedModel, write_node
from moe_export.runners.arrays import Array
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.tolerances import relative_error

# Tokens for one expert: more than any kernel takes at once.
_CROWD = 40
_MOST_EXPERTS = 4


def compare_kernels(
    packed: PackedModel, path: str, library: Path | None, seed: int
) -> dict[str, float]:
    """Errors of a layer's nodes by routing; the larger one where it has several nodes.

    Args:
        packed: The written model.
        path: The layer's path.
        library: The op library.
        seed: Seeds the inputs and which experts are tried.
    """
    errors: dict[str, float] = {}
    for node, attributes in expert_nodes(packed.lowered.model):
        if node.metadata_props[PATH_KEY] != path:
            continue
        for routing, error in _compare_node(packed, node, attributes, library, seed):
            errors[routing] = max(error, errors.get(routing, 0.0))
    return errors


def _compare_node(
    packed: PackedModel,
    node: ir.Node,
    attributes: ExpertAttributes,
    library: Path | None,
    seed: int,
) -> Iterator[tuple[str, float]]:
    random = np.random.default_rng(seed)
    experts = _some_experts(attributes.num_experts, random)
    weights = _dequantized(node, attributes, experts)
    names = [n for n in attributes.input_names() if n not in attributes.parameter_names()]
    file = write_node(packed, node, names, "node.onnx")
    try:
        runner = OnnxRuntimeRunner(file, library)
    finally:
        file.unlink()
    for routing, chosen in (
        ("few tokens", list(range(len(experts)))),
        ("many tokens", [len(experts) - 1] * _CROWD),
    ):
        if isinstance(attributes, GroupedExperts):
            error = _experts_error(runner, attributes, weights, experts, chosen, random)
        else:
            error = _matmul_error(runner, attributes, weights, experts, chosen, random)
        yield routing, error


def _some_experts(num_experts: int, random: np.random.Generator) -> list[int]:
    """The first, the last and some others."""
    ends = {0, num_experts - 1}
    others = [int(e) for e in random.permutation(num_experts) if e not in ends]
    return sorted(ends | set(others[: _MOST_EXPERTS - len(ends)]))


def _dequantized(
    node: ir.Node, attributes: ExpertAttributes, experts: Sequence[int]
) -> dict[str, Array]:
    """Stored inputs of some experts in float32, by name."""
    found = {}
    for matrix in attributes.matrices:
        values = stored_parts(node, attributes, matrix)
        tensors = {part: stored_tensor(value) for part, value in values.items()}
        parts = {p: np.stack([read_expert(t, e) for e in experts]) for p, t in tensors.items()}
        name = f"{matrix.prefix}weight"
        found[name] = dequantize(attributes.storage, parts, matrix.columns)
    for name, value in input_values(node, attributes).items():
        if name.endswith("bias"):
            found[name] = stored_tensor(value).numpy()[list(experts)]
    return found


def _experts_error(
    runner: OnnxRuntimeRunner,
    attributes: GroupedExperts,
    weights: Mapping[str, Array],
    experts: Sequence[int],
    chosen: Sequence[int],
    random: np.random.Generator,
) -> float:
    """Error of ``GroupedExperts`` where token t goes to ``experts[chosen[t]]``."""
    local = np.array(chosen, np.int32)[:, None]
    x = random.standard_normal((len(chosen), attributes.hidden_size), np.float32)
    expert_weights = random.random(local.shape, np.float32) + np.float32(0.1)
    dtype = np.int32 if "int32" in runner.inputs[1].dtype else np.int64
    ids = (np.array(experts)[local] + attributes.first_expert).astype(dtype)
    found = runner.run({"x": x, "expert_ids": ids, "expert_weights": expert_weights})["y"]
    plain = dataclasses.replace(
        attributes,
        num_experts=len(experts),
        first_expert=0,
        weight_type="fp32",
        block_size=0,
        has_zero_point=False,
    )
    expected = reference.grouped_experts(x, local, expert_weights, attributes=plain, **weights)
    return relative_error(found, expected)


def _matmul_error(
    runner: OnnxRuntimeRunner,
    attributes: GroupedMatMul,
    weights: Mapping[str, Array],
    experts: Sequence[int],
    chosen: Sequence[int],
    random: np.random.Generator,
) -> float:
    """Error of ``GroupedMatMul`` where row m belongs to ``experts[chosen[m]]``, which ascend."""
    rows = random.standard_normal((len(chosen), attributes.in_features), np.float32)
    counts = np.zeros(attributes.num_experts, np.int32)
    np.add.at(counts, np.array(experts)[list(chosen)], 1)
    ends = counts.cumsum(dtype=np.int32)
    found = runner.run({"rows": rows, "group_ends": ends})["y"]
    plain = dataclasses.replace(
        attributes,
        num_experts=len(experts),
        weight_type="fp32",
        block_size=0,
        has_zero_point=False,
    )
    local_ends = ends[list(experts)]
    expected = reference_rows.grouped_matmul(
        rows, group_ends=local_ends, attributes=plain, **weights
    )
    return relative_error(found, expected)
