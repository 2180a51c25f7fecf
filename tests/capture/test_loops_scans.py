"""The recurrences as ONNX ``Scan``, in ONNX Runtime, against their meaning token by token."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from moe_export.capture.loops.chunked_scan import CHUNK, CHUNK_PER_CHANNEL
from moe_export.capture.loops.translate import DOMAIN, write_scans
from moe_export.errors import UnsupportedModelError
from moe_export.ops.portable import OPSET
from moe_export.tolerances import relative_error

HEADS, K, V = 3, 8, 6
CHANNELS, STATE = 10, 4
ATTENTION = torch.ops.moe_export.gated_linear_attention
SELECTIVE = torch.ops.moe_export.selective_scan
BAR = 2e-6


def make_graph(op_type, tensors, names):
    """A model of one node, batch and length symbolic, before it is written as a Scan."""
    fixed = {HEADS, K, V, CHANNELS, STATE, 1}
    inputs = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([s if s in fixed and i > 0 else f"d{i}" for i, s in enumerate(t.shape)]),
        )
        for name, t in zip(names, tensors, strict=True)
    ]
    if op_type == "SelectiveScan":
        inputs[2].shape = ir.Shape([CHANNELS, STATE])
    node = ir.node(op_type, inputs, domain=DOMAIN, num_outputs=2)
    for value, name in zip(node.outputs, ("output", "last"), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
    imports = {"": OPSET, DOMAIN: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports, name="test")
    return ir.Model(graph, ir_version=10)


def make_proto(op_type, tensors, names):
    model = make_graph(op_type, tensors, names)
    assert write_scans(model) == 1
    for value in model.graph.outputs:
        value.shape = ir.Shape([None] * (4 if op_type == "GatedLinearAttention" else 3))
    return ir.to_proto(model)


def attention_proto(decays, *, delta):
    names = ["query", "key", "value", "decay", "state", *(["beta"] if delta else [])]
    return make_proto("GatedLinearAttention", inputs_by_node(draw(1, 2, decays, delta)), names)


def draw(batch, length, decays=1, delta=True, seed=0):
    """Query, key, value, decay, beta and state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(batch, *sizes, generator=generator)

    query, key = (normal(length, HEADS, K) for _ in range(2))
    key = torch.nn.functional.normalize(key, dim=-1)
    beta = normal(length, HEADS).sigmoid() if delta else None
    decay = -normal(length, HEADS, decays).exp()
    return [query, key, normal(length, HEADS, V), decay, beta, normal(HEADS, K, V)]


def inputs_by_node(tensors):
    """As the node takes them: beta last, or left out."""
    query, key, value, decay, beta, state = tensors
    return [query, key, value, decay, state, *([] if beta is None else [beta])]


def run(proto, tensors):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return run_session(session, tensors)


def run_session(session, tensors):
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})


def worst(found, expected):
    return max(relative_error(f, e.numpy()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(("decays", "delta"), [(1, True), (K, True), (1, False), (K, False)])
def test_attention_equals_its_meaning_at_every_length_and_batch(decays, delta):
    chunk = CHUNK if decays == 1 else CHUNK_PER_CHANNEL
    session = onnxruntime.InferenceSession(attention_proto(decays, delta=delta).SerializeToString())
    for length in (1, 2, chunk - 1, chunk, chunk + 1, 4 * chunk, 4 * chunk + 3):
        for batch in (1, 3):
            tensors = draw(batch, length, decays, delta, seed=length)
            found = run_session(session, inputs_by_node(tensors))
            assert worst(found, ATTENTION(*tensors)) <= BAR, (length, batch)


@pytest.mark.parametrize("decays", [1, K])
def test_one_repeated_key_that_is_overwritten_again_and_again(decays):
    """Powers of the chunk's matrix grow to 1e8 here, and cancel."""
    query, key, value, decay, beta, state = draw(2, 130, decays)
    tensors = [query, key[:, :1].expand(key.shape).contiguous(), value]
    tensors += [torch.zeros_like(decay), torch.ones_like(beta), state]
    found = run(attention_proto(decays, delta=True), inputs_by_node(tensors))
    assert worst(found, ATTENTION(*tensors)) <= BAR


@pytest.mark.parametrize("decays", [1, K])
def test_a_state_that_is_forgotten_at_once_gives_no_infinity(decays):
    tensors = draw(2, 70, decays)
    tensors[3] = torch.where(tensors[3] < -1, -500.0, 0.0)
    found = run(attention_proto(decays, delta=True), inputs_by_node(tensors))
    assert worst(found, ATTENTION(*tensors)) <= 1e-4  # sums of logarithms reach 16000


def test_the_state_carries_on_where_a_call_ended():
    session = onnxruntime.InferenceSession(attention_proto(1, delta=True).SerializeToString())
    query, key, value, decay, beta, state = draw(2, 77)
    whole = ATTENTION(query, key, value, decay, beta, state)
    for start, end in ((0, 40), (40, 77)):
        part = [t[:, start:end].contiguous() for t in (query, key, value, decay, beta)]
        found = run_session(session, [*part[:4], state, part[4]])
        assert relative_error(found[0], whole[0][:, start:end].numpy()) <= BAR
        state = torch.from_numpy(found[1])
    assert relative_error(found[1], whole[1].numpy()) <= BAR


def draw_selective(batch, length):
    generator = torch.Generator().manual_seed(length)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator)

    x, step = normal(2, batch, length, CHANNELS).unbind(0)
    b, c = normal(2, batch, length, STATE).unbind(0)
    state = normal(batch, CHANNELS, STATE)
    return [x, step.exp(), -normal(CHANNELS, STATE).exp(), b, c, state]


def selective_proto():
    return make_proto("SelectiveScan", draw_selective(1, 2), ["x", "step", "a", "b", "c", "state"])


def test_selective_scan_equals_its_meaning_at_every_length_and_batch():
    session = onnxruntime.InferenceSession(selective_proto().SerializeToString())
    for length in (1, 2, 50):
        for batch in (1, 3):
            tensors = draw_selective(batch, length)
            assert worst(run_session(session, tensors), SELECTIVE(*tensors)) <= BAR, length


@pytest.mark.parametrize("make", [selective_proto, lambda: attention_proto(K, delta=True)])
def test_any_runtime_can_run_it(make):
    """Standard operators alone; the onnx package's own evaluator agrees."""
    proto = make()
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} == {""}
    if proto.graph.input[0].name == "x":
        tensors = draw_selective(2, 5)
        expected = SELECTIVE(*tensors)
    else:
        drawn = draw(2, 19, K)
        tensors, expected = inputs_by_node(drawn), ATTENTION(*drawn)
    names = [value.name for value in proto.graph.input]
    feeds = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
    assert worst(ReferenceEvaluator(proto).run(None, feeds), expected) <= BAR


def test_no_value_of_a_body_hides_one_around_it():
    proto = attention_proto(1, delta=True)
    outer = {name for node in proto.graph.node for name in node.output}
    outer |= {value.name for value in proto.graph.input}
    (scan,) = (node for node in proto.graph.node if node.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    inner = {name for node in body.node for name in node.output} | {v.name for v in body.input}
    assert not outer & inner


def test_a_width_that_is_not_known_is_refused():
    tensors = inputs_by_node(draw(1, 2))
    model = make_graph(
        "GatedLinearAttention", tensors, ["query", "key", "value", "decay", "state", "beta"]
    )
    model.graph.inputs[4].shape = ir.Shape(["batch", HEADS, "width", V])
    with pytest.raises(UnsupportedModelError, match=r"state has the shape .* fixed sizes"):
        write_scans(model)
