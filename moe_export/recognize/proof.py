"""Prove a lowered layer against eager on probe inputs before it replaces anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.block import MoeBlock, Proof, bound
from moe_export.recognize.layer_call import LayerCall, flatten_result
from moe_export.recognize.probes import Probes
from moe_export.recognize.trace import trace_layer
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

_COUNTS = (1, 3, 17, 64, 256)
# Tokens that all go to one choice of experts: more than an expert's usual capacity.
_CROWD = 1024
# Further crowds, in which a capacity rounds in other ways, and how many rows get a large one.
_CROWDS, _CROWDED_ROWS = (53, 127, 153, 331), 16
# Crowds for a layer with a capacity, which was read off a few numbers.
MANY_CROWDS = (7, 20, 31, 77, 100, 200, 401, 512, 640, 777, 900, 1100, 1500, 1777, 2048, 3000)
# Magnitudes at which clamps act, and at which all scores are near.
_SCALES = (30.0, 0.01)
_SEARCH_ROWS = 2048


class DisagreementError(UnsupportedModelError):
    """A lowered layer and eager differ.

    Attributes:
        point: Sizes of the tokens' axes where they do.
    """

    def __init__(self, call: LayerCall, tensors: Sequence[Tensor], what: str, more: str) -> None:
        x = tensors[call.main]
        super().__init__(f"{call.where}: {what} on {list(x.shape)}{more}")
        self.point = call.point(x)


def check_repeatable(call: LayerCall, tensors: Sequence[Tensor]) -> list[Any]:
    """The layer's results in eager, flat, which must be the same twice.

    Raises:
        UnsupportedModelError: eager gives two answers to one input in eval mode.
    """
    first, second = (flatten_result(call.run(tensors))[0] for _ in range(2))
    for a, b in zip(first, second, strict=False):
        if isinstance(a, Tensor) and not (
            a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
        ):
            raise UnsupportedModelError(
                f"{call.where}: eager gives two answers to one input in eval mode: "
                f"{_why_unrepeatable(call, tensors)}"
            )
    return first


def _why_unrepeatable(call: LayerCall, tensors: Sequence[Tensor]) -> str:
    try:
        trace = trace_layer(call, tensors)
    except UnsupportedModelError:
        return "it draws random numbers or keeps state between calls"
    if trace.random:
        names = ", ".join(dict.fromkeys(trace.random))
        return f"it draws random numbers ({names}): is a dropout or a noise on?"
    if trace.written:
        return f"it writes to its buffer {trace.written[0]}: it keeps state between calls"
    return "it keeps state between calls, or Python draws random numbers"


def prove_layer(block: MoeBlock, call: LayerCall, probes: Probes) -> MoeBlock:
    """Compare a whole layer with eager on every probe; return it with its proof.

    Raises:
        UnsupportedModelError: results differ, or eager's own results change between two calls.
    """
    reached: set[int] = set()
    counts, worst, ran = set[int](), 0.0, 0
    for tensors in _probe_tensors(block, call, probes):
        try:
            expected = check_repeatable(call, tensors)
        except UnsupportedModelError:
            raise
        except Exception:  # eager itself does not take this shape
            continue
        ran += 1
        found, chosen = _run_lowered(block, call, tensors)
        reached.update(chosen)
        worst = max(worst, _compare(block, call, tensors, found, expected))
        counts.add(tensors[call.main].numel() // call.width)
    if not ran:
        raise UnsupportedModelError(f"{call.where}: eager runs on no shape but the example's")
    block = dataclasses.replace(block, expert_modules=_counted_modules(block, call, probes))
    within = [e for e in reached if 0 <= e - block.experts.first_expert < block.experts.num_experts]
    return dataclasses.replace(block, proof=Proof(tuple(sorted(counts)), len(within), worst))


def _run_lowered(
    block: MoeBlock, call: LayerCall, tensors: Sequence[Tensor]
) -> tuple[list[Any], list[int]]:
    """The lowered form's results, flat, and the ids that it chose."""
    args, kwargs = call.arguments(tensors)
    with bound([block]), torch.no_grad():
        try:
            found = flatten_result(call.run(tensors))[0]
            ids = [] if block.route is None else block.route(*args, **kwargs)[0].unique().tolist()
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise DisagreementError(
                call, tensors, f"the {block.kind} form does not run", f": {first}"
            ) from error
    return found, ids


def _counted_modules(block: MoeBlock, call: LayerCall, probes: Probes) -> Sequence[nn.Module]:
    """Eager's expert modules, if each is called with just the rows that are routed to it."""
    if block.route is None or not block.expert_modules:
        return ()
    tensors = probes.make(probes.spread_out(_COUNTS[3]), seed=4)
    rows = [0] * len(block.expert_modules)

    def counter(index: int) -> Callable[..., None]:
        def count(_module: nn.Module, args: tuple[Any, ...]) -> None:
            rows[index] += args[0].numel() // args[0].shape[-1]

        return count

    handles = [
        expert.register_forward_pre_hook(counter(index))
        for index, expert in enumerate(block.expert_modules)
    ]
    try:
        call.run(tensors)
    finally:
        for handle in handles:
            handle.remove()
    args, kwargs = call.arguments(tensors)
    with bound([block]), torch.no_grad():
        ids = block.route(*args, **kwargs)[0]
    routed = [int((ids == e).sum()) for e in range(len(rows))]
    return block.expert_modules if rows == routed else ()


def _compare(
    block: MoeBlock,
    call: LayerCall,
    tensors: Sequence[Tensor],
    found: Sequence[Any],
    expected: Sequence[Any],
) -> float:
    worst = 0.0
    for index, (mine, eager) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(eager, Tensor) or index in block.untraceable:
            continue
        error = relative_error(mine.numpy(), eager.numpy())
        if not error <= LAYER_TOLERANCE:
            part = "" if len(expected) == 1 else f" in result {index}"
            raise DisagreementError(
                call,
                tensors,
                f"the {block.kind} form differs from eager by {error:.1e} of the largest "
                f"output{part}",
                f" (allowed {LAYER_TOLERANCE:.0e})",
            )
        worst = max(worst, error)
    return worst


def _probe_tensors(block: MoeBlock, call: LayerCall, probes: Probes) -> Iterator[list[Tensor]]:
    """The example; rows that reach every expert; several token counts; crowds of tokens.

    A layer with a capacity drops most of a crowd.
    """
    yield call.tensors
    num_experts = block.experts.num_experts
    directions = _directions(call, num_experts)
    rows = covering_rows(
        _row_route(block, call, probes), num_experts, call.rows(call.x), directions
    )
    yield probes.with_rows(rows)
    for count in _COUNTS:
        yield probes.make(probes.spread_out(count), seed=2)
    for point in probes.odd_points():
        yield probes.make(point, seed=2)
    if block.kind != "registered":
        # Zero tokens tie all experts, and large ones saturate scores into ties: only what selects
        # with eager's own operators breaks them as eager does.
        for scale in _SCALES:
            yield probes.make(probes.spread_out(_COUNTS[3]), seed=6, scale=scale)
        yield probes.with_zero_rows(probes.spread_out(_COUNTS[3]), seed=7)
    for row in rows[:_CROWDED_ROWS]:
        yield probes.make(probes.spread_out(_CROWD), seed=3, row=row)
    crowds = [probes.spread_out(n) for n in (*_CROWDS, *(MANY_CROWDS if block.sizes else ()))]
    crowds += [probes.filled(p) for size in block.sizes for p in size.critical_points()]
    for point in dict.fromkeys(crowds):
        yield probes.make(point, seed=3, row=rows[-1])


def _row_route(block: MoeBlock, call: LayerCall, probes: Probes) -> Callable[[Tensor], Tensor]:
    """Expert ids of rows ``[N, H]``."""

    def route(rows: Tensor) -> Tensor:
        if block.route is None:
            return torch.zeros(len(rows), 1, dtype=torch.long)
        args, kwargs = call.arguments(probes.with_rows(rows))
        with bound([block]), torch.no_grad():
            ids: Tensor = block.route(*args, **kwargs)[0]
        return ids

    return route


def _directions(call: LayerCall, num_experts: int) -> Tensor:
    """The layer's matrices with a row for each expert, such as its gate's."""
    width = call.width
    matrices = [p.detach() for p in call.module.parameters() if p.dim() == 2]
    matrices += [m.T for m in matrices]
    fitting = [m for m in matrices if m.shape == (num_experts, width)]
    return torch.cat([call.x.new_zeros(0, width), *fitting])


def covering_rows(
    route: Callable[[Tensor], Tensor], num_experts: int, like: Tensor, directions: Tensor
) -> Tensor:
    """Rows ``[N, H]`` that together reach as many experts as a search finds.

    Args:
        route: Expert ids ``[N, K]`` of rows.
        num_experts: Experts to reach.
        like: Rows whose spread the search starts from.
        directions: ``[N, H]``, each likely to favour one expert.
    """
    generator = torch.Generator().manual_seed(1)
    spread = float(like.std(correction=0)) or 1.0
    missing, kept = set(range(num_experts)), []
    unit = directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    for factor in (1.0, 4.0, 16.0):
        random = torch.randn(_SEARCH_ROWS, like.shape[-1], generator=generator)
        rows = torch.cat([random, unit * like.shape[-1] ** 0.5]) * spread * factor
        ids = route(rows)
        if len(ids) != len(rows):
            break
        for row, chosen in zip(rows, ids.tolist(), strict=True):
            if missing.intersection(chosen):
                missing.difference_update(chosen)
                kept.append(row)
        if not missing:
            break
    return torch.stack(kept) if kept else like.reshape(-1, like.shape[-1])[:1]
