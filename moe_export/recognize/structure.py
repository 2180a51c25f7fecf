"""Where experts may live: lists of alike modules and stacked parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from torch import nn


def alike(modules: Sequence[nn.Module]) -> bool:
    """Whether all modules have parameters of the same names and shapes, and at least one."""
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in modules]
    return len(shapes) >= 2 and bool(shapes[0]) and all(s == shapes[0] for s in shapes)


def expert_lists(module: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Lists that may be experts below ``module``, outermost first, with their paths.

    Two or more members are alike; the others, if any, have no parameters. A module's alike children
    count as a list too.
    """
    for path, child in module.named_modules():
        members = list(child.children())
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            if alike([m for m in members if any(True for _ in m.parameters())]):
                yield path, members
            continue
        groups: dict[type[nn.Module], list[str]] = {}
        for name, member in child.named_children():
            groups.setdefault(type(member), []).append(name)
        for names in groups.values():
            group = [child.get_submodule(name) for name in names]
            if alike(group) and not isinstance(child, nn.Sequential):
                yield f"{path}.{names[0]}..{names[-1]}".strip("."), group


def unlike_lists(module: nn.Module) -> Iterator[str]:
    """Lists below ``module`` whose members have parameters of one kind in different shapes."""
    for path, child in module.named_modules():
        if not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            continue
        shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in child.children()]
        first = next((s for s in shapes if s), {})
        for number, other in enumerate(shapes):
            if other.keys() == first.keys() and other != first:
                name = next(n for n in first if first[n] != other[n])
                yield (
                    f"{path}.{number}: experts of different shapes: {name} is "
                    f"{list(other[name])} here and {list(first[name])} in the first"
                )
                break


def has_stacked_parameters(module: nn.Module) -> bool:
    """Whether the module itself, not one of torch's layers, holds parameters stacked by expert."""
    if type(module).__module__.startswith("torch.nn"):
        return isinstance(module, nn.ParameterList) and len(module) >= 2
    return any(p.dim() >= 3 and p.shape[0] >= 2 for p in module.parameters(recurse=False))


def holds_experts(module: nn.Module, skip: Set[nn.Module], chains: Set[nn.Module]) -> bool:
    """Whether the module or one below it, outside ``skip``, looks like it holds experts.

    Args:
        module: Root of the search.
        skip: Modules that are accounted for, with all below them.
        chains: Lists that run one member after the other, such as decoder layers: no evidence by
            themselves, their members are searched.
    """
    if module in skip:
        return False
    if has_stacked_parameters(module):
        return True
    is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and module not in chains
    if is_list and alike(list(module.children())):
        return True
    return any(holds_experts(child, skip, chains) for child in module.children())
