"""Run a cut router on logits and see every value inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moe_export.errors import EnvironmentLacksError
from moe_export.optimize.router_slice import NoCutError, RouterSlice
from moe_export.runners.arrays import Array

# Samples that the probe tokens are spread over, where the model tells samples and positions apart.
_SAMPLES = (3, 2, 1)


@dataclass(frozen=True)
class SliceRun:
    """What a cut did on ``T`` rows.

    Attributes:
        logits: ``[T, E]``.
        samples: Samples that the rows were spread over: row ``b * T / samples + s`` is position
            ``s`` of sample ``b``.
        values: Everything computed inside, by name.
    """

    logits: Array
    samples: int
    values: Mapping[str, Array]


class SliceRunner:
    """A session of the cut whose outputs are all the values inside.

    Two operators are replaced by what they mean: ONNX Runtime cuts Sigmoid off below -18, and an
    unsorted TopK may return any order, the sorted one too.

    Raises:
        NoCutError: ONNX Runtime does not run the cut on its own.
        EnvironmentLacksError: onnxruntime is not installed.
    """

    def __init__(self, part: RouterSlice) -> None:
        self._part = part
        graph = part.model.graph
        for node in list(graph):
            if node.op_type == "TopK":
                node.attributes["sorted"] = ir.AttrInt64("sorted", 1)
            if node.op_type == "Sigmoid":
                spell_out_sigmoid(graph, node)
        self.names = _expose_values(graph)
        self._session = _open(part.model)

    def run(self, logits: Array) -> SliceRun:
        """Run the cut on ``[T, E]`` float32; T must be a multiple of 12 or 1.

        Raises:
            NoCutError: it does not run on so many rows.
        """
        error: Exception | None = None
        for samples, feeds in self._feeds(logits):
            try:
                results = self._session.run(self.names, feeds)
            except Exception as failure:  # onnxruntime raises its own kinds
                error = failure
                continue
            values = dict(zip(self.names, results, strict=True))
            if values[self._part.ids].shape == (len(logits), self._part.top_k):
                self._check_rows(feeds)
                return SliceRun(logits, samples, values)
        raise NoCutError("the router does not run apart from the model") from error

    def _check_rows(self, feeds: Mapping[str, Array]) -> None:
        """Twice as many rows in what the logits do not share must not give more ids.

        Raises:
            NoCutError: ids are repeated, as for the tokens of a sequence that is routed as one.
        """
        first, *others = self._part.model.graph.inputs
        own = {*_symbols(first.shape or ir.Shape([])), "?"}
        doubled = dict(feeds)
        for value in others:
            array, dims = feeds[str(value.name)], value.shape or ()
            foreign = [isinstance(d, ir.SymbolicDim) and not own & {*_symbols([d])} for d in dims]
            shape = [size * 2 if f else size for size, f in zip(array.shape, foreign, strict=True)]
            doubled[str(value.name)] = np.zeros(shape, array.dtype)
        rows = 0
        with suppress(Exception):  # as above
            rows = len(self._session.run([self._part.ids], doubled)[0])
        if rows * self._part.num_experts != feeds[str(first.name)].size:
            raise NoCutError("the router has other rows than its logits")

    def _feeds(self, logits: Array) -> Iterator[tuple[int, dict[str, Array]]]:
        first, *others = self._part.model.graph.inputs
        assert first.shape is not None  # a start has a known shape
        for samples, sizes in _sizes(first.shape, [v.shape for v in others], len(logits)):
            try:
                shape = [_size(d, sizes) for d in first.shape]
                feeds = {str(first.name): logits.reshape(shape)}
                for value in others:
                    dims = [_size(d, sizes) for d in value.shape or ()]
                    dtype = value.dtype.numpy() if value.dtype is not None else np.float32
                    feeds[str(value.name)] = np.zeros(dims, dtype)
            except ValueError:
                continue
            yield samples, feeds


def _sizes(
    logits: ir.Shape, others: list[ir.Shape | None], num_tokens: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Sizes of the symbols under which there are ``num_tokens`` rows of logits.

    Symbols of the logits come first, then those of values of which only the shape is read; the
    first is taken for the batch, the second for the sequence.
    """
    shapes = [logits, *(shape for shape in others if shape is not None)]
    symbols = list(dict.fromkeys(s for shape in shapes for s in _symbols(shape)))
    fixed = {1, *(d for shape in shapes for d in list(shape)[:-1] if isinstance(d, int))}
    for factor in sorted(f for f in fixed if f > 0 and num_tokens % f == 0):
        rest = num_tokens // factor
        for samples in _SAMPLES:
            if rest % samples == 0:
                sizes = dict.fromkeys(symbols, 1)
                sizes |= dict(zip(symbols, (samples, rest // samples), strict=False))
                if len(symbols) < 2:
                    sizes = dict.fromkeys(symbols, rest)
                yield (samples if len(symbols) > 1 else factor), sizes
    for symbol in symbols:  # one sample, or samples of one token
        yield 1, dict.fromkeys(symbols, 1) | {symbol: num_tokens}


def _symbols(shape: Iterable[int | ir.SymbolicDim]) -> Iterator[str]:
    for dim in shape:
        if isinstance(dim, ir.SymbolicDim):
            # A size without a name is its own symbol; the others are sums and products of names.
            yield from sorted(dim.free_symbols()) if dim.value is not None else ["?"]


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return sizes["?"]
    size = dim.evaluate(sizes)
    if not isinstance(size, int):
        raise ValueError(f"{dim} is not known")  # noqa: TRY004 - an unknown size is a value
    return size


def spell_out_sigmoid(graph: ir.Graph, node: ir.Node) -> None:
    """1 / (1 + exp(-x)), which is exact down to where float32 ends."""
    minus = ir.node("Neg", [node.inputs[0]])
    exp = ir.node("Exp", minus.outputs)
    one = ir.node("Constant", [], {"value": ir.tensor(np.float32(1))})
    plus = ir.node("Add", [exp.outputs[0], one.outputs[0]])
    result = ir.node("Reciprocal", plus.outputs)
    old, new = node.outputs[0], result.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, [minus, exp, one, plus, result])
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _expose_values(graph: ir.Graph) -> list[str]:
    """Make every named and typed value an output, and return their names."""
    for value in graph.outputs:
        value.shape = None
    present = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value.name and value.dtype is not None and value not in present:
                value.shape = None
                graph.outputs.append(value)
    return [str(value.name) for value in graph.outputs]


def _open(model: ir.Model):  # type: ignore[no-untyped-def]  # noqa: ANN202 - onnxruntime has no types
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EnvironmentLacksError(
            "fusing routers needs onnxruntime: pip install 'moe-export[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise NoCutError("ONNX Runtime does not take the router on its own") from error
