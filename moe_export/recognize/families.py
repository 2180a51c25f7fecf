"""Parameters that come once for each expert: stacked in one tensor, or numbered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from moe_export.recognize.structure import expert_lists
from moe_export.sources import file_backed

# Matrices of an expert: up and down.
_FEWEST = 2
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class ParameterFamily:
    """One parameter of every expert.

    Attributes:
        name: Where it is, ``#`` for the expert's number.
        tensor: ``[E, a, b]`` for matrices, ``[E, a]`` for vectors; a view where it is stored so.
        leaves: Names of the parameters that it is made of.
    """

    name: str
    tensor: Tensor
    leaves: frozenset[str]

    @property
    def is_matrix(self) -> bool:
        """Whether each expert has a matrix of it."""
        return self.tensor.dim() == 3


def expert_counts(module: nn.Module, selected: Sequence[int] = ()) -> list[int]:
    """How many experts the layer's parameters may be for, the likeliest first.

    Args:
        module: The layer.
        selected: Numbers of things that the layer chooses among.
    """
    counts: dict[int, int] = {}
    for parameter in module.parameters():
        if parameter.dim() == 3 and parameter.shape[0] >= 2:
            counts[parameter.shape[0]] = counts.get(parameter.shape[0], 0) + 2
    for members in _numbered(module).values():
        counts[len(members)] = counts.get(len(members), 0) + 1
    found = sorted((c for c, seen in counts.items() if seen >= 2), key=lambda c: -c)
    return list(dict.fromkeys((*found, *selected)))


def parameter_families(
    module: nn.Module, num_experts: int, widths: Sequence[int]
) -> list[ParameterFamily]:
    """Every parameter that may come once for each of E experts.

    Args:
        module: The layer.
        num_experts: E.
        widths: Widths of rows in the layer: a flattened matrix must have one of them.
    """
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    found = list(_stacked(module, num_experts, widths))
    for name, members in _numbered(module).items():
        if len(members) == num_experts:
            leaves = frozenset(own[id(member)] for member in members)
            found += _family(name, file_backed.stack([m.detach() for m in members]), leaves)
    if sum(family.is_matrix for family in found) < _FEWEST:
        found += _joined(module, num_experts, widths)
    return found


def _stacked(
    module: nn.Module, num_experts: int, widths: Sequence[int]
) -> Iterator[ParameterFamily]:
    """Tensors with an axis of the experts, the first or the second.

    A row of a layer's width may be an expert of one neuron. A tensor may have room for experts
    that do without it, at the end.
    """
    for name, tensor in _floats(module):
        leaf = frozenset([name])
        if tensor.dim() == 2 and tensor.shape[0] == num_experts and tensor.shape[1] in widths:
            yield ParameterFamily(name, tensor[:, None], leaf)
        if tensor.dim() >= 2 and tensor.shape[0] == num_experts:
            yield from _family(name, tensor, leaf)
        elif tensor.dim() == 3 and tensor.shape[1] == num_experts:
            yield from _family(name, tensor.transpose(0, 1), leaf)
        elif tensor.dim() == 3 and tensor.shape[0] > num_experts:
            yield from _family(name, tensor[:num_experts], leaf)


def _joined(
    module: nn.Module, num_experts: int, widths: Sequence[int]
) -> Iterator[ParameterFamily]:
    """Tensors in which the experts lie below or beside each other."""
    for name, tensor in _floats(module):
        leaf = frozenset([name])
        if tensor.dim() == 1 and tensor.shape[0] % num_experts == 0:
            yield ParameterFamily(name, tensor.reshape(num_experts, -1), leaf)
        if tensor.dim() != 2 or num_experts in tensor.shape:
            continue
        rows, columns = tensor.shape
        if rows % num_experts == 0 and columns in widths:
            yield ParameterFamily(name, tensor.reshape(num_experts, -1, columns), leaf)
        if columns % num_experts == 0 and rows in widths:
            beside = tensor.reshape(rows, num_experts, -1).transpose(0, 1)
            yield ParameterFamily(name, beside, leaf)


def _floats(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()


def _family(name: str, tensor: Tensor, leaves: frozenset[str]) -> Iterator[ParameterFamily]:
    if tensor.dim() == 4 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.dim() == 3 and 1 in tensor.shape[1:]:
        tensor = tensor.flatten(1)
    if tensor.dim() in (2, 3):
        yield ParameterFamily(name, tensor, leaves)


def _numbered(module: nn.Module) -> dict[str, list[Tensor]]:
    """Parameters whose names differ in one number, 0 to E-1, and those of lists' members."""
    groups: dict[str, dict[int, Tensor]] = {}
    for name, parameter in module.named_parameters():
        for number in _NUMBER.finditer(name):
            pattern = f"{name[: number.start()]}#{name[number.end() :]}"
            groups.setdefault(pattern, {})[int(number.group())] = parameter
    found = {
        pattern: [members[n] for n in sorted(members)]
        for pattern, members in groups.items()
        if len(members) >= 2 and max(members) - min(members) == len(members) - 1
    }
    for path, experts in expert_lists(module):
        for name, _ in experts[0].named_parameters():
            owners = [e for e in experts if any(n == name for n, _ in e.named_parameters())]
            found.setdefault(f"{path}.#.{name}", [e.get_parameter(name) for e in owners])
    return {
        pattern: members
        for pattern, members in found.items()
        if all(m.shape == members[0].shape for m in members)
    }
