"""Find how few layers have to stay in float32 for a model's error to stay within a bound."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.errors import UsageError
from moe_export.lower.stored_weights import expert_nodes, input_values, stored_tensor
from moe_export.ops.nodes import PATH_KEY
from moe_export.pack.model_file import PackedModel
from moe_export.progress import Progress
from moe_export.verify.quantization import EagerCase, layer_errors, measure_outputs
from moe_export.verify.quantization_report import largest_error

_CANDIDATE_NAME = "candidate.onnx"


def find_kept_layers(
    exact: PackedModel,
    packed: PackedModel,
    max_error: float,
    library: Path | None,
    cases: Sequence[EagerCase],
    progress: Progress,
) -> tuple[str, ...]:
    """Paths of the layers to keep: those with the largest error of their own, as few as suffice.

    Candidates read their weights from the files of both models. That keeping more layers never
    makes the error larger is assumed, as bisection does; the one that is returned was measured.

    Args:
        exact: The model in float32.
        packed: The same with smaller weights, in the same folder.
        max_error: Bound on the largest relative RMS error of an output.
        library: The op library.
        cases: What eager gave.
        progress: Told of each candidate.

    Raises:
        UsageError: even float32 is beyond the bound.
    """
    errors = layer_errors(exact, packed, cases, library, progress)
    groups = _layer_groups(exact, {path: error.rms for path, error in errors.items()})
    tried: dict[int, float] = {}

    def error_of(count: int) -> float:
        kept = [path for group in groups[:count] for path in group]
        path = packed.folder / _CANDIDATE_NAME
        ir.save(mix(exact, packed, kept), path)
        try:
            tried[count] = largest_error(measure_outputs(path, library, cases)).rms
        finally:
            path.unlink()
        return tried[count]

    count = smallest_count(len(groups), max_error, error_of)
    if count is None:
        raise UsageError(
            f"even with all experts in float32 the outputs differ from eager's by "
            f"{tried[len(groups)]:.1e} (RMS), which is above --max-error {max_error:g}: allow more"
        )
    listed = ", ".join(f"{tried[n]:.1e} with {n}" for n in sorted(tried))
    progress.remark(
        f"--max-error {max_error:g} keeps {count} of {len(groups)} layers in float32; errors (RMS) "
        f"by layers that are kept: {listed}"
    )
    return tuple(path for group in groups[:count] for path in group)


def smallest_count(most: int, bound: float, error_of: Callable[[int], float]) -> int | None:
    """The smallest count in 0..``most`` whose error is within ``bound``, by bisection.

    Args:
        most: The largest count.
        bound: On the error.
        error_of: The error of a count; falls with it.

    Returns:
        None if no count is within the bound.
    """
    if error_of(0) <= bound:
        return 0
    if not error_of(most) <= bound:
        return None
    low, high = 0, most  # low is beyond the bound, high within
    while high - low > 1:
        middle = (low + high) // 2
        if error_of(middle) <= bound:
            high = middle
        else:
            low = middle
    return high


def _layer_groups(exact: PackedModel, errors: Mapping[str, float]) -> list[list[str]]:
    """Paths that share weights, which stay or go together, those with the largest error first."""
    weights: dict[str, set[str]] = {}
    for node, attributes in expert_nodes(exact.graph):
        values = input_values(node, attributes)
        stored = {str(values[f"{matrix.prefix}weight"].name) for matrix in attributes.matrices}
        weights.setdefault(node.metadata_props[PATH_KEY], set()).update(stored)
    groups: list[tuple[float, list[str], set[str]]] = []
    for path, error in errors.items():
        worst, paths, names = error, [path], weights[path]
        for group in [g for g in groups if g[2] & names]:
            groups.remove(group)
            worst, paths, names = max(worst, group[0]), [*group[1], *paths], names | group[2]
        groups.append((worst, paths, names))
    return [paths for _, paths, _ in sorted(groups, key=lambda group: -group[0])]


def mix(exact: PackedModel, packed: PackedModel, kept: Collection[str]) -> ir.Model:
    """The smaller model's graph with some layers' experts in float32; its tensors stay in files.

    Args:
        exact: The model in float32.
        packed: The same with smaller weights, in the same folder.
        kept: Paths of the layers that stay in float32.
    """
    model, source = ir.load(packed.path), ir.load(exact.path)
    originals = {str(node.name): (node, attributes) for node, attributes in expert_nodes(source)}
    for node, attributes in expert_nodes(model):
        if node.metadata_props[PATH_KEY] not in kept:
            continue
        original, wanted = originals[str(node.name)]
        values = input_values(node, attributes)
        for name, value in input_values(original, wanted).items():
            if name in wanted.parameter_names():
                values[name] = _adopt(model, value)
        node.resize_inputs(len(wanted.input_names()))
        for index, name in enumerate(wanted.input_names()):
            node.replace_input_with(index, values[name])
        for attribute in ir.convenience.convert_attributes(wanted.to_onnx()):
            node.attributes[attribute.name] = attribute
    RemoveUnusedNodesPass()(model)
    return model


def _adopt(model: ir.Model, value: ir.Value) -> ir.Value:
    """A stored value of another graph in this one; both call the same tensor the same."""
    name = str(value.name)
    if name not in model.graph.initializers:
        tensor = stored_tensor(value)
        model.graph.register_initializer(
            ir.Value(name=name, type=value.type, shape=value.shape, const_value=tensor)
        )
    return model.graph.initializers[name]
