"""``GroupedExperts`` as TensorRT's own MoE layer: ``TRT_MoE``, a node that its ONNX parser knows.

What the node computes, with e = ids[b, s, k]:

    y[b, s] = sum over k of scores[b, s, k] * down_e(silu(gate_e(x[b, s])) * up_e(x[b, s]))

Sources: NVIDIA, TensorRT documentation, "MoE (Mixture of Experts)", "Operators: MoE" and release
notes of 10.16; onnx-tensorrt, docs/TRT_custom_ops.md. Rules:

1. Only what these say that the layer takes is lowered (``native_limits.py``).
2. Tensors have rank 3: the tokens are one sequence, batch 1.
3. Activations, scores, weights and biases have one type.
4. Weights are ``[E, H, I]`` and ``[E, I, H]``, the transposed of the contract's, in three tensors.
   They are computed one expert at a time, when they are written.
5. ``activation_type`` is a number; the parser drops a name, and other attributes, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moe_export.errors import UnsupportedModelError
from moe_export.lower.expert_tensor import ExpertTensor, read_expert
from moe_export.lower.stored_weights import expert_nodes, input_values, stored_tensor
from moe_export.ops.contract import check_model
from moe_export.ops.spec import GroupedExperts
from moe_export.pack.native_limits import refuse_limits

OP_TYPE = "TRT_MoE"
_DOMAIN = "trt"
# The number of ``MoEActType::kSILU``.
_SILU = 1
# Inputs of a node that hold its weights; biases follow.
_WEIGHTS = slice(3, 6)
_BATCH = "moe_export.batch_axis"


def native_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that are TensorRT's own MoE layer."""
    for node in model.graph:
        if (node.domain, node.op_type) == (_DOMAIN, OP_TYPE):
            yield node


def native_weights(node: ir.Node) -> tuple[ir.TensorProtocol, ...]:
    """A native node's weights of gate, up and down."""
    return tuple(stored_tensor(value) for value in node.inputs[_WEIGHTS] if value is not None)


def use_native_moe(model: ir.Model) -> ir.Model:
    """A copy of a graph whose experts are TensorRT's own MoE layer; routers stay what they are.

    Args:
        model: Its expert weights are row-major.

    Raises:
        UnsupportedModelError: names every layer that it does not take, and why.
    """
    native = model.clone()
    nodes = list(expert_nodes(native))
    refuse_limits(nodes)
    native.opset_imports[_DOMAIN] = 1
    replacer = _NodeReplacer(native.graph)
    for node, attributes in nodes:
        assert isinstance(attributes, GroupedExperts)  # others were refused
        name = str(node.name).replace(f"/{GroupedExperts.op_type}", f"/{OP_TYPE}")
        replacer.replace(node, attributes, name)
    RemoveUnusedNodesPass()(native)
    check_model(native)
    return native


class _NodeReplacer:
    """Replaces nodes of one graph; nodes that share weights go on sharing them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[str, ir.Value] = {}

    def replace(self, node: ir.Node, attributes: GroupedExperts, name: str) -> None:
        """Put ``TRT_MoE`` where ``node`` was.

        Args:
            node: A ``GroupedExperts`` that was not refused.
            attributes: Its attributes.
            name: What to call the new node.
        """
        values = input_values(node, attributes)
        dtype = stored_tensor(values["up_weight"]).dtype
        axes = self._register(_BATCH, ir.tensor(np.array([0], np.int64)))
        before: list[ir.Node] = []
        given = []
        for key, kind in (
            ("x", dtype),
            ("expert_ids", ir.DataType.INT32),
            ("expert_weights", dtype),
        ):
            value = values[key]
            if value.dtype != kind:
                before.append(_node("Cast", [value], f"{name}/{key}.cast", value, kind))
                value = before[-1].outputs[0]
            before.append(_node("Unsqueeze", [value, axes], f"{name}/{key}", value, kind, (1,)))
            given.append(before[-1].outputs[0])
        inner = [*given, *self._weights(values, attributes)]
        if attributes.has_bias:
            inner += self._biases(values, attributes, dtype)
        moe = _node(OP_TYPE, inner, name, values["x"], dtype, (1,), {"activation_type": _SILU})
        moe.metadata_props.update(node.metadata_props)
        after = _node("Squeeze", [moe.outputs[0], axes], f"{name}/y", values["x"], dtype)
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], [*before, moe, after], node.outputs, after.outputs
        )

    def _weights(
        self, values: Mapping[str, ir.Value], attributes: GroupedExperts
    ) -> Iterator[ir.Value]:
        """Gate, up and down (rule 4)."""
        half = attributes.intermediate_size
        for part, key, rows in (
            ("gate", "up_weight", slice(half)),
            ("up", "up_weight", slice(half, None)),
            ("down", "down_weight", slice(None)),
        ):
            name = f"{values[key].name}.{part}.native"
            tensor = _transposed(stored_tensor(values[key]), rows, name)
            yield self._register(name, tensor)

    def _biases(
        self, values: Mapping[str, ir.Value], attributes: GroupedExperts, dtype: ir.DataType
    ) -> Iterator[ir.Value]:
        """Gate, up and down, rounded to the type of the activations (rule 3)."""
        half = attributes.intermediate_size
        for part, key, columns in (
            ("gate", "up_bias", slice(half)),
            ("up", "up_bias", slice(half, None)),
            ("down", "down_bias", slice(None)),
        ):
            bias = stored_tensor(values[key]).numpy()[:, columns]
            with np.errstate(over="ignore"):
                rounded = np.ascontiguousarray(bias, dtype.numpy())
            if not np.isfinite(rounded).all():
                raise UnsupportedModelError(
                    f"{values[key].name} is not finite in {dtype.name.lower()}, which TensorRT's "
                    "own MoE layer takes it in"
                )
            name = f"{values[key].name}.{part}.native"
            yield self._register(name, ir.tensor(rounded))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._made:
            tensor.name = name
            value = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            self._graph.register_initializer(value)
            self._made[name] = value
        return self._made[name]


def _transposed(tensor: ir.TensorProtocol, rows: slice, name: str) -> ExpertTensor:
    """Rows of every expert of ``[E, N, K]`` as ``[E, K, rows]``."""
    experts, count, columns = tensor.shape.numpy()
    width = len(range(count)[rows])
    return ExpertTensor(
        lambda expert: read_expert(tensor, expert)[rows].T,
        tensor.dtype,
        (experts, columns, width),
        name,
    )


def _node(
    op_type: str,
    inputs: list[ir.Value],
    name: str,
    like: ir.Value,
    dtype: ir.DataType,
    leading: tuple[int, ...] = (),
    attributes: dict[str, int] | None = None,
) -> ir.Node:
    """A node of one output, which has the shape of ``like`` behind ``leading``."""
    given = {"to": dtype} if op_type == "Cast" else attributes
    domain = _DOMAIN if op_type == OP_TYPE else ""
    node = ir.node(op_type, inputs, given, domain=domain, name=name)
    node.outputs[0].name = f"{name}/out"
    node.outputs[0].type = ir.TensorType(dtype)
    if like.shape is not None:
        node.outputs[0].shape = ir.Shape((*leading, *like.shape))
    return node
