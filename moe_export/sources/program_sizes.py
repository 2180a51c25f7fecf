"""Sizes in an exported program, read again in the module that uses them.

``torch.export`` reads a size once, from the program's input, and hands the number to every module
that needs it. Put together as modules again, a layer would take that number as an argument, and
could not be run by itself on other sizes. Its own tensors have the size, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)


def read_sizes_where_used(program: ExportedProgram) -> None:
    """Rewrite ``program`` so that sizes come from tensors of the module that uses them.

    A size that no tensor of the module has stays an argument.
    """
    graph = program.graph_module.graph
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if node.op != "call_function" or _is_size(node):
            continue
        for size in [n for n in node.all_input_nodes if _is_size(n)]:
            if _module(size) == _module(node):
                continue
            with graph.inserting_before(node):
                local = _read_again(graph, size, node, nodes[: index + 1])
            if local is not None:
                node.replace_input_with(size, local)
    for node in reversed(nodes):
        if node.op == "call_function" and _is_size(node) and not node.users:
            graph.erase_node(node)
    program.graph_module.recompile()


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), _SIZES)


def _module(node: fx.Node) -> str:
    """Path of the module that runs a node; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def _read_again(
    graph: fx.Graph, size: fx.Node, user: fx.Node, before: list[fx.Node]
) -> fx.Node | None:
    """The same size from what the user's module has; None where it has no such tensor."""
    value = size.meta["val"]
    for tensor in _tensors_near(user, before):
        for axis, length in enumerate(tensor.meta["val"].shape):
            if not is_concrete_int(length) and length.node.expr == value.node.expr:
                node = graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
                return _placed(node, size, user)
    if size.target is torch.ops.aten.sym_size.int:
        return None
    inputs = {n: _read_again(graph, n, user, before) for n in size.all_input_nodes if _is_size(n)}
    if not inputs or None in inputs.values():
        return None  # a number that is read from a tensor's values stays where it is
    return _placed(graph.node_copy(size, lambda n: inputs.get(n) or n), size, user)


def _placed(node: fx.Node, size: fx.Node, user: fx.Node) -> fx.Node:
    node.meta["val"] = size.meta["val"]
    node.meta["nn_module_stack"] = user.meta.get("nn_module_stack")
    return node


def _tensors_near(user: fx.Node, before: list[fx.Node]) -> Iterator[fx.Node]:
    """Tensors that the user's module takes or makes, the nearest first."""
    for node in reversed(before):
        if _module(node) == _module(user) and node.op == "call_function":
            found = [*node.all_input_nodes] if node is user else [node, *node.all_input_nodes]
            yield from (n for n in found if isinstance(n.meta.get("val"), Tensor))
