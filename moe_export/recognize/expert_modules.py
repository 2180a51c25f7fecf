"""A bank from a list of alike modules: one is traced, and every one is checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.ffn_form import find_ffn
from moe_export.recognize.layer_call import LayerCall
from moe_export.recognize.program import Alignment, Environment, Identity, Program, Slot
from moe_export.recognize.trace import Ref, trace_layer
from moe_export.recognize.unfused import UnfusedExperts, matrices
from moe_export.sources import file_backed
from moe_export.tolerances import LAYER_TOLERANCE, relative_error

_COUNTS = (11, 16, 23)


def bank_of_modules(label: str, experts: Sequence[nn.Module], hidden_size: int) -> ExpertBank:
    """Learn what alike modules compute on rows ``[N, hidden_size]``.

    Args:
        label: Path of the list in the model.
        experts: The modules.
        hidden_size: Width of their rows.

    Raises:
        UnsupportedModelError: they compute different things, or something that is not row by row.
    """
    copies, zeros = _plain_experts(label, experts, hidden_size)
    computing = [n for n in range(len(experts)) if n not in (*copies, *zeros)]
    if computing != list(range(computing[0], computing[-1] + 1)):
        raise UnsupportedModelError(f"{label}: experts that compute do not follow each other")
    everyone, experts = experts, [experts[n] for n in computing]
    traced = _trace_expert(label, experts[0], hidden_size)
    alignment, rows, result = traced
    own = _own_tensors(alignment, rows, result)
    program = Program(alignment, [result], [rows, *own])
    factors = matrices(program.nodes, set(own))
    names = {f"expert_{n}": identity for n, identity in enumerate(own)}
    stacked = {
        name: tensor.transpose(1, 2) if names[name] in factors else tensor
        for name, tensor in _stack(alignment, experts, names).items()
    }
    value = alignment.tensor(result)
    assert value is not None  # the result of the trace
    unfused = UnfusedExperts(
        num_experts=len(experts),
        hidden_size=hidden_size,
        output_size=value.shape[-1],
        program=program,
        rows=rows,
        result=result,
        stacked=names,
        first_expert=computing[0],
    )
    bank = find_ffn(alignment, unfused, stacked, label, experts)
    candidates = [bank] if bank else []
    candidates.append(ExpertBank(label, unfused, stacked, modules=tuple(experts)))
    errors = []
    for candidate in candidates:
        whole = replace(candidate, modules=tuple(everyone), copies=copies, zeros=zeros)
        error, worst = _largest_error(whole, everyone)
        if error <= LAYER_TOLERANCE:
            return whole
        errors.append((error, worst))
    error, worst = min(errors)
    raise UnsupportedModelError(
        f"{label}.{worst} ({type(everyone[worst]).__name__}) computes something else than "
        f"{label}.0 with its parameters: off by {error:.1e} of the largest output"
    )


def _plain_experts(
    label: str, experts: Sequence[nn.Module], width: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Experts without parameters: those that give their row back, and those that give nothing."""
    rows, copies, zeros = probe_rows(_COUNTS[0], width), [], []
    for number, expert in enumerate(experts):
        if any(True for _ in expert.parameters()):
            continue
        with torch.no_grad():
            made = expert(rows)
        if torch.equal(made, rows):
            copies.append(number)
        elif not bool(made.any()):
            zeros.append(number)
        else:
            raise UnsupportedModelError(
                f"{label}.{number} ({type(expert).__name__}) has no parameters, and neither gives "
                "its row back nor nothing"
            )
    return tuple(copies), tuple(zeros)


def probe_rows(count: int, width: int) -> Tensor:
    """Rows of several magnitudes, at which clamps act too."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, width, generator=generator)
    rows[count // 2 :] *= 4
    rows[::5] *= 30
    rows[1::5] *= 0.01
    return rows


def _trace_expert(
    label: str, expert: nn.Module, width: int
) -> tuple[Alignment, Identity, Identity]:
    leaves, spec = pytree.tree_flatten(((probe_rows(_COUNTS[0], width),), {}))
    where = f"{label}.0 ({type(expert).__name__})"
    call = LayerCall(where, expert, tuple(leaves), spec, (0,), 0)
    traces = [trace_layer(call, [probe_rows(count, width)]) for count in _COUNTS]
    alignment = Alignment(traces, [(count,) for count in _COUNTS])
    results = traces[0].results
    if len(results) != 1 or not isinstance(results[0], Ref):
        raise UnsupportedModelError(f"{where} returns {len(results)} values; one is expected")
    return alignment, ("leaf", "input", 0), alignment.identity(results[0].value)


def _own_tensors(alignment: Alignment, rows: Identity, result: Identity) -> list[Identity]:
    """What operators on rows take that is made of the expert's parameters alone."""
    whole = Program(alignment, [result], [rows])
    by_row, owned, own = {rows}, set[Identity](), dict[Identity, None]()
    for node in whole.nodes:
        given = [
            a.identity for a in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(a, Slot)
        ]
        mine = [i for i in given if i in owned or i[:2] == ("leaf", "parameter")]
        if by_row.intersection(given):
            by_row.update(node.outputs)
            own.update(dict.fromkeys(mine))
        elif mine:
            owned.update(node.outputs)
    if result not in by_row:
        raise UnsupportedModelError("an expert's result does not depend on its rows")
    return list(own)


def _stack(
    alignment: Alignment, experts: Sequence[nn.Module], names: Mapping[str, Identity]
) -> dict[str, Tensor]:
    """``[E, ...]`` of each of the experts' own tensors."""
    program = Program(alignment, list(names.values()))
    own: dict[str, list[Tensor]] = {name: [] for name in names}
    for expert in experts:
        environment = Environment({}, ())
        with torch.no_grad():
            program.run(expert, environment)
            for name, identity in names.items():
                own[name].append(program.read(identity, expert, environment))
    return {name: file_backed.stack(tensors) for name, tensors in own.items()}


def _largest_error(bank: ExpertBank, experts: Sequence[nn.Module]) -> tuple[float, int]:
    """The error of the worst expert, and which it is."""
    errors = []
    for index, expert in enumerate(experts):
        rows = probe_rows(_COUNTS[1], bank.sizes[0])
        with torch.no_grad():
            expected, found = expert(rows), bank.expert(index, rows)
            # In another company, and at another place, a row must come out the same.
            others = [(expert(rows.flip(0)), expected.flip(0)), (expert(rows[5:7]), expected[5:7])]
            small = expert(rows / 100), bank.expert(index, rows / 100)
        pairs = [(found, expected), small, *others]
        errors.append((max(relative_error(a.numpy(), b.numpy()) for a, b in pairs), index))
    return max(errors)
