"""A layer of anyone's: traced, explained by its experts, rebuilt around them, and proved."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from moe_export.errors import UnsupportedModelError
from moe_export.ops.spec import GroupedExperts
from moe_export.recognize.bank import ExpertBank
from moe_export.recognize.block import MoeBlock
from moe_export.recognize.call_forms import join_forms
from moe_export.recognize.candidates import Candidates, choices
from moe_export.recognize.expert_modules import bank_of_modules
from moe_export.recognize.expert_parameters import banks_of_parameters
from moe_export.recognize.hints import hints_of
from moe_export.recognize.layer import RebuiltLayer, rebuild_layer
from moe_export.recognize.layer_call import LayerCall, find_layer_calls
from moe_export.recognize.match import find_capacity_matches, find_matches
from moe_export.recognize.probes import Probes
from moe_export.recognize.program import Alignment
from moe_export.recognize.proof import DisagreementError, check_repeatable, prove_layer
from moe_export.recognize.recorder import Recording
from moe_export.recognize.sizes import Point
from moe_export.recognize.structure import expert_lists, unlike_lists
from moe_export.recognize.targets import Match
from moe_export.recognize.trace import Trace, trace_layer

# Explanations of one bank that are tried before it is given up.
_MAX_MATCHES = 6
# Share of experts in stacked parameters that the proof must reach.
_LEAST_REACH = 0.9
# Times that the shapes at which an explanation was wrong are traced too.
_MAX_REFINEMENTS = 3
# Readings of a layer's parameters that are tried.
_MAX_BANKS = 1500

Search = Callable[[Candidates, ExpertBank], Iterator[Match]]


@dataclass
class Attempts:
    """What was tried on a layer, for its refusal.

    Attributes:
        reasons: Why each attempt failed.
        matched: Whether some experts explained the traces, though no proof came of it.
        misfits: Shapes at which a layer with inferred sizes was wrong.
    """

    reasons: list[str] = field(default_factory=list)
    matched: bool = False
    misfits: list[Point] = field(default_factory=list)

    def note(self, reason: object) -> None:
        """Keep a reason once."""
        if str(reason) not in self.reasons:
            self.reasons.append(str(reason))


def recognize_custom(path: str, module: nn.Module, record: Recording) -> MoeBlock:
    """Find the experts and the routing of a layer in its traces, and prove the rebuilt layer.

    Args:
        path: The layer's path in the model.
        module: The layer.
        record: The eager run in which it was found.

    Raises:
        UnsupportedModelError: nothing that was tried explains the layer; says what was tried.
    """
    calls = find_layer_calls(path, module, record)
    return join_forms(calls, [_recognize_call(path, call, record) for call in calls])


def _recognize_call(path: str, call: LayerCall, record: Recording) -> MoeBlock:
    """The layer as it is in calls of one form."""
    check_repeatable(call, call.tensors)
    if random := trace_layer(call, call.tensors).random:
        raise UnsupportedModelError(f"{call.where}: {_why_not_traced(random[0])}")
    probes = Probes(call)
    attempts = Attempts()
    banks = list(_module_banks(call, path, record, attempts))
    for points, search in _rounds(probes, attempts):
        candidates = Candidates(_trace(call, probes, points))
        parameters = _parameter_banks(call, candidates.alignment, banks)
        for bank in itertools.chain(banks, parameters):
            matches = search(candidates, bank)
            block = _explain(call, path, candidates.alignment, bank, matches, probes, attempts)
            if block is not None:
                return _with_runs(block, bank, record)
    raise UnsupportedModelError(
        f"{call.where} is not explained by its experts:{_say(attempts, record, banks)}"
    )


def _why_not_traced(operator: str) -> str:
    """Why a layer that runs an operator with a random part, a dropout for one, is not explained."""
    if "scaled_dot_product" in operator:
        return (
            "it holds experts and computes attention. Experts inside an attention, such as those "
            "of its projections, are not lowered: expected is a layer whose result is a weighted "
            "sum of experts of one token's row"
        )
    return f"it draws random numbers ({operator}) in eval mode"


def _rounds(probes: Probes, attempts: Attempts) -> Iterator[tuple[Sequence[Point], Search]]:
    """Shapes to trace at, and what to look for in the traces.

    Few shapes explain most layers; a capacity, or a smallest size, takes more, among them those
    at which an earlier explanation was wrong.
    """
    few, more = probes.few_points(), probes.more_points()
    yield (), find_matches
    if attempts.matched:  # more shapes do not explain what some do not
        yield more, find_matches
        yield (*more, *few), find_matches
    yield more, find_capacity_matches
    for _ in range(_MAX_REFINEMENTS):
        before = len(attempts.misfits)
        points = tuple(dict.fromkeys((*more, *attempts.misfits)))
        if not attempts.misfits:
            return
        yield points, find_matches
        yield points, find_capacity_matches
        if len(attempts.misfits) == before:
            return


def _trace(call: LayerCall, probes: Probes, more: Sequence[Point]) -> Alignment:
    """Traces of random tokens, and of crowds of nearly equal ones, at shapes that eager takes.

    Args:
        call: How the layer is called.
        probes: Makes the inputs.
        more: Further shapes for crowds.
    """
    row = call.rows(call.x)[0]
    inputs = [(point, probes.make(point)) for point in probes.points()]
    inputs += [(p, probes.make(p, row=row)) for p in (*more, *probes.crowd_points())]
    traces: list[Trace] = []
    taken: list[Point] = []
    for point, tensors in inputs:
        try:
            traces.append(trace_layer(call, tensors))
        except UnsupportedModelError:
            if not traces:
                raise
            continue  # eager itself may not take so few tokens
        taken.append(point)
    return Alignment(traces, taken, hints=hints_of(call.module))


def _explain(
    call: LayerCall,
    path: str,
    alignment: Alignment,
    bank: ExpertBank,
    matches: Iterator[Match],
    probes: Probes,
    attempts: Attempts,
) -> MoeBlock | None:
    matched = False
    for match in itertools.islice(matches, _MAX_MATCHES):
        matched = attempts.matched = True
        try:
            rebuilt = rebuild_layer(call, path, alignment, match)
            return _check_reach(call, prove_layer(_block(rebuilt), call, probes))
        except DisagreementError as error:
            attempts.note(error)
            if rebuilt.sizes and error.point not in attempts.misfits:
                attempts.misfits.append(error.point)
        except UnsupportedModelError as error:
            attempts.note(error)
    if not matched and bank.modules:
        attempts.note(
            f"{bank.label}: no weighted sum of the {bank.num_experts} experts, under any routing "
            "that the layer computes, is what it makes of them"
        )
    return None


def _check_reach(call: LayerCall, block: MoeBlock) -> MoeBlock:
    """Say which part of the experts no probe reached; expert modules were each checked alone.

    Raises:
        UnsupportedModelError: too few experts were reached for a proof of stacked parameters.
    """
    assert block.proof is not None  # it was just proved
    reached, total = block.proof.experts_reached, block.experts.num_experts
    if reached == total:
        return block
    text = f"probe inputs reach {reached} of {total} experts: eager may never run the others"
    if not block.eager_experts and reached < _LEAST_REACH * total:
        raise UnsupportedModelError(f"{call.where}: {text}, so that they are not proved")
    return dataclasses.replace(block, remarks=(*block.remarks, text))


def _block(rebuilt: RebuiltLayer) -> MoeBlock:
    bank = rebuilt.match.bank
    return MoeBlock(
        path=rebuilt.path,
        kind="module list" if bank.modules else "parameters",
        module=rebuilt.call.module,
        experts=bank.form,
        lowered=rebuilt.forward,
        parameters=rebuilt.tensors,
        route=rebuilt.route,
        eager_experts=bank.eager(),
        expert_modules=() if bank.copies or bank.zeros else bank.modules,
        sums_experts=rebuilt.returns_sum,
        untraceable=rebuilt.untraceable,
        sizes=rebuilt.sizes,
        remarks=rebuilt.remarks,
    )


def _module_banks(
    call: LayerCall, path: str, record: Recording, attempts: Attempts
) -> Iterator[ExpertBank]:
    for reason in unlike_lists(call.module):
        attempts.note(reason)
    lists = sorted(expert_lists(call.module), key=lambda found: -len(found[1]))
    for name, experts in lists:
        width = _called_width(experts, record)
        if width is None:
            continue
        label = f"{path}.{name}".strip(".")
        try:
            yield bank_of_modules(label, experts, width)
        except UnsupportedModelError as error:
            attempts.note(error)


def _called_width(experts: list[nn.Module], record: Recording) -> int | None:
    """Width of the rows that experts are called with; None where they are never called."""
    for expert in experts:
        for call in record.calls.get(expert, []):
            if call.args and isinstance(call.args[0], Tensor) and call.args[0].dim() >= 2:
                return int(call.args[0].shape[-1])
    return None


def _parameter_banks(
    call: LayerCall, alignment: Alignment, banks: Sequence[ExpertBank]
) -> Iterator[ExpertBank]:
    if any(isinstance(bank.form, GroupedExperts) for bank in banks):
        return  # the experts are modules, and were understood
    width = call.width
    trace, selected = alignment.traces[0], choices(alignment.traces)
    found = banks_of_parameters(call.module, trace, width, selected)
    yield from itertools.islice(found, _MAX_BANKS)


def _with_runs(block: MoeBlock, bank: ExpertBank, record: Recording) -> MoeBlock:
    """Say which experts eager ran, where the proof did not reach all."""
    assert block.proof is not None  # it was just proved
    if block.proof.experts_reached == block.experts.num_experts:
        return block
    return dataclasses.replace(block, remarks=(*block.remarks, *_few_ran(bank, record)))


def _few_ran(bank: ExpertBank, record: Recording) -> Iterator[str]:
    """Which expert modules eager ran on the example inputs, if not all."""
    ran = [e for e, expert in enumerate(bank.modules) if record.calls.get(expert)]
    if 0 < len(ran) < bank.num_experts:
        shown = ", ".join(map(str, ran[:8]))
        yield (
            f"eager ran only experts {shown} of {bank.num_experts} in {bank.label} on the example "
            "inputs"
        )


def _say(attempts: Attempts, record: Recording, banks: Sequence[ExpertBank]) -> str:
    """What was tried, one line each."""
    reasons = [*attempts.reasons, *(r for bank in banks for r in _few_ran(bank, record))]
    if not reasons:
        reasons = ["no list of alike modules, and no parameters stacked by expert, explain it"]
    return "".join(f"\n  - {reason}" for reason in reasons)
