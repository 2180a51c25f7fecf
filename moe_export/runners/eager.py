"""Run eager PyTorch and watch how its MoE layers route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from moe_export.runners.arrays import Array
from moe_export.runners.selections import SORTS, TOP_K, TOP_ONE, SelectionMode


class WatchedBlock(Protocol):
    """What the runner needs to know of a layer; ``recognize.block.MoeBlock`` has it all."""

    @property
    def path(self) -> str:
        """Where the layer is in the model."""

    @property
    def module(self) -> nn.Module:
        """The layer."""

    @property
    def route(self) -> Any:  # noqa: ANN401 - a callable or None
        """From the module's arguments to ids and weights; None where they are among them."""

    @property
    def eager_experts(self) -> Any:  # noqa: ANN401 - a callable or None
        """Eager's own experts under a given routing."""

    @property
    def expert_modules(self) -> Sequence[nn.Module]:
        """Modules whose calls can be counted."""

    @property
    def sums_experts(self) -> bool:
        """Whether the module returns the experts' sum and nothing else."""


@dataclass
class LayerTrace:
    """What one layer did in one run.

    Attributes:
        expert_ids: ``[T, K]``.
        expert_weights: ``[T, K]`` float32.
        y: The experts' sum ``[T, H]``; None where the layer adds something to it.
        margin: ``[T]``, distance of the last kept selection score to the first one left out,
            relative to the larger of 1 and the score; infinite where eager selected nothing.
        rows_per_expert: Rows that each expert module was called with; empty where not counted.
    """

    expert_ids: Array
    expert_weights: Array
    y: Array | None = None
    margin: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    rows_per_expert: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Outputs of one run and what each layer did in it, by the path of the call."""

    outputs: Mapping[str, Array]
    layers: Mapping[str, LayerTrace]


def call_path(path: str, number: int) -> str:
    """The name of a layer's first, second, .. call in one run of the model."""
    return path if number == 1 else f"{path}#{number}"


class _Selections:
    """Scores that eager selected from, each with how many it took (None: it sorted them all)."""

    def __init__(self) -> None:
        self._taken: list[tuple[Tensor, int | None]] = []

    def add(self, func: object, args: tuple[Any, ...]) -> None:
        """Keep the scores of a top-k, a maximum or a sort."""
        if func in TOP_K:
            self._taken.append((args[0], args[1]))
        elif func in TOP_ONE | SORTS and args[0].is_floating_point():
            self._taken.append((args[0], 1 if func in TOP_ONE else None))

    def take(self) -> list[tuple[Tensor, int | None]]:
        """What was kept since the last call."""
        taken, self._taken = self._taken, []
        return taken


class EagerRunner:
    """Eager PyTorch on NumPy arrays.

    Args:
        run: Calls the model with named tensors and names its outputs.
        blocks: The layers to watch.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        blocks: Sequence[WatchedBlock],
    ) -> None:
        self._run, self._blocks = run, blocks

    def trace(self, inputs: Mapping[str, Array]) -> Trace:
        """Run the model once and watch its layers."""
        with watch(self._blocks) as layers:
            outputs = self.run(inputs)
        return Trace(outputs, layers)

    def run(
        self, inputs: Mapping[str, Array], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> dict[str, Array]:
        """Run the model once; outputs come back as float32.

        Args:
            inputs: Arrays by input name.
            dtypes: Types that some inputs are cast to first.
        """
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        for name, dtype in (dtypes or {}).items():
            tensors[name] = tensors[name].to(dtype)
        outputs = self._run(tensors)
        return {
            name: (t.float() if t.is_floating_point() else t).numpy() for name, t in outputs.items()
        }


def run_experts(block: WatchedBlock, x: Array, expert_ids: Array, expert_weights: Array) -> Array:
    """Eager's own experts of a layer under a given routing, ``[T, H]`` float32."""
    tensors = [torch.from_numpy(a) for a in (x, expert_ids, expert_weights)]
    result: Array = block.eager_experts(*tensors).numpy()
    return result


@contextmanager
def watch(blocks: Sequence[WatchedBlock]) -> Iterator[dict[str, LayerTrace]]:
    """Trace the layers in the eager run inside the block, computed by their own eager code."""
    traces: dict[str, LayerTrace] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        selections = _Selections()
        stack.enter_context(SelectionMode(selections.add))
        for block in {block.path: block for block in blocks}.values():
            _watch_block(block, selections, traces, stack)
        yield traces


def _watch_block(
    block: WatchedBlock, selections: _Selections, traces: dict[str, LayerTrace], stack: ExitStack
) -> None:
    rows = [0] * len(block.expert_modules)
    calls = 0
    previous = block.module.forward
    own = block.eager_experts if block.route is None else previous

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever eager passes
        nonlocal calls
        calls += 1
        rows[:] = [0] * len(rows)
        # A module that is called with its routing was routed before: keep what came before.
        earlier = selections.take()
        result = own(*args, **kwargs)
        taken = selections.take() if block.route is not None else earlier
        trace = _trace(block, args, kwargs, result, taken)
        trace.rows_per_expert = tuple(rows)
        traces[call_path(block.path, calls)] = trace
        selections.take()
        return result

    stack.callback(_restore, block.module, block.module.__dict__.get("forward"))
    block.module.forward = forward
    for index, expert in enumerate(block.expert_modules):

        def count(_module: nn.Module, args: tuple[Any, ...], index: int = index) -> None:
            rows[index] += args[0].numel() // args[0].shape[-1]

        stack.callback(expert.register_forward_pre_hook(count).remove)


def _restore(module: nn.Module, previous: object) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous


def _trace(
    block: WatchedBlock,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Tensor,
    taken: list[tuple[Tensor, int | None]],
) -> LayerTrace:
    if block.route is None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        ids, weights = given[1], given[2]
    else:
        ids, weights = block.route(*args, **kwargs)
    k = ids.shape[-1]
    ids, weights = ids.reshape(-1, k), weights.reshape(-1, k)
    return LayerTrace(
        expert_ids=ids.numpy().copy(),
        expert_weights=weights.float().numpy().copy(),
        y=_rows(result) if block.sums_experts else None,
        margin=_margin(taken, len(ids), k),
    )


def _rows(tensor: Tensor) -> Array:
    array: Array = tensor.reshape(-1, tensor.shape[-1]).float().numpy().copy()
    return array


def _margin(taken: list[tuple[Tensor, int | None]], tokens: int, top_k: int) -> Array:
    """Smallest distance of a kept score to one left out, over all selections made per token."""
    margin = torch.full((tokens,), float("inf"))
    for scores, k in taken:
        if not scores.numel():  # such as an indexer's, before there is a whole pool of keys
            continue
        rows = scores.reshape(-1, scores.shape[-1]).float()
        kept = top_k if k is None else k
        if len(rows) != tokens or kept >= rows.shape[-1]:
            continue
        best = rows.topk(kept + 1, dim=-1).values
        last, first_out = best[:, -2], best[:, -1]
        distance = (last - first_out) / last.abs().clamp(min=1)
        margin = torch.minimum(margin, distance.nan_to_num(nan=float("inf")))
    return margin.numpy()
