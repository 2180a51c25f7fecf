"""What a graph's telemetry counts, against eager's routing of the same logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moe_export.errors import UnsupportedModelError, UsageError
from moe_export.lower.functions import attach_functions
from moe_export.runners.library import ort_library_path
from moe_export.runners.onnxruntime import OnnxRuntimeRunner
from moe_export.telemetry.outputs import add_telemetry, output_names
from moe_export.telemetry.record import CHOICES, TOKENS
from tests.telemetry.routers import CASES, OF_WEIGHTS, E

T = 33


def copied(model):
    return ir.from_proto(ir.to_proto(model))


def open_model(model, folder, *, portable=False):
    if portable:
        attach_functions(model)
    ir.save(model, folder / "model.onnx")
    library = None if portable else ort_library_path()
    return OnnxRuntimeRunner(folder / "model.onnx", library, num_threads=1)


class Counting:
    """A graph with telemetry and what it said of one draw of logits."""

    def __init__(self, model, folder, *, tokens=T, portable=False):
        model = copied(model)
        self.records = {record.path: record for record in add_telemetry(model)}
        runner = open_model(model, folder, portable=portable)
        random = np.random.default_rng(5)
        self.logits = {
            name: (2 * random.standard_normal((tokens, E))).astype(np.float32) for name in CASES
        }
        self.outputs = runner.run(
            {f"x_{name}": case.router.shaped(self.logits[name]) for name, case in CASES.items()}
        )

    def telemetry(self, name):
        return [self.outputs[output] for output in self.records[name].names]

    def eager(self, name):
        """Counts, the distribution's mean, and what is dropped, by eager's router."""
        case, logits = CASES[name], torch.from_numpy(self.logits[name])
        with torch.no_grad():
            ids, weights = case.router.route(logits, **(case.router.stored or {}))
            valid = (ids >= 0) & (ids < E)
            counts = np.bincount(ids[valid].numpy(), minlength=E)
            dropped = (~valid.any(1)).sum() if case.by_token else (~valid).sum()
            return counts, self._mean(case, logits, ids, weights), int(dropped)

    def _mean(self, case, logits, ids, weights):
        if case.scores is not None:
            return case.scores(logits.double()).mean(0).numpy()
        return mean_of_weights(ids, weights)


def mean_of_weights(ids, weights):
    """``[E]``: each token's weights over their sum, by a loop."""
    dense = np.zeros((len(ids), E))
    for token, (own_ids, own_weights) in enumerate(zip(ids, weights, strict=True)):
        for expert, weight in zip(own_ids, own_weights, strict=True):
            if 0 <= expert < E:
                dense[token, expert] += abs(float(weight))
    total = dense.sum(1, keepdims=True)
    return (dense / np.where(total > 0, total, 1)).mean(0)


@pytest.fixture(scope="module", params=["fused", "plain", "portable"])
def counting_routers(request, routers, tmp_path_factory):
    """The routers fused, as they were, and fused without the op library."""
    model = routers.before if request.param == "plain" else routers.after
    folder = tmp_path_factory.mktemp("routers")
    return request.param, Counting(model, folder, portable=request.param == "portable")


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_eagers_routing(counting_routers, name):
    _, found = counting_routers
    counts, _, dropped = found.eager(name)
    tokens, _, lost = found.telemetry(name)
    assert tokens.dtype == np.int64
    assert lost.dtype == np.int64
    assert tokens.tolist() == counts.tolist()
    assert lost.shape == ()
    assert int(lost) == dropped


@pytest.mark.parametrize("name", CASES)
def test_mean_probability_is_that_of_eagers_scores(counting_routers, name):
    kind, found = counting_routers
    record = found.records[name]
    assert record.probability == (CASES[name].plain_words if kind == "plain" else CASES[name].words)
    _, expected, _ = found.eager(name)
    if record.probability == OF_WEIGHTS:
        ids, weights = CASES[name].router.route(
            torch.from_numpy(found.logits[name]), **(CASES[name].router.stored or {})
        )
        expected = mean_of_weights(ids.numpy(), weights.numpy())
    mean = found.telemetry(name)[1]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected, atol=2e-6)


def test_some_choices_are_dropped_and_some_tokens_untaken(routers, tmp_path):
    """Else the tests above would not see a wrong count."""
    found = Counting(routers.after, tmp_path)
    assert {found.records[name].dropped for name in CASES} == {CHOICES, TOKENS}
    for name in ("capacity", "negative_ids", "coupled_sigmoid", "expert_choice"):
        assert found.telemetry(name)[2] > 0, name


def test_the_portable_target_gives_the_same_bits(routers, tmp_path):
    (tmp_path / "portable").mkdir()
    library = Counting(routers.after, tmp_path).outputs
    portable = Counting(routers.after, tmp_path / "portable", portable=True).outputs
    for name in CASES:
        for output in output_names(name):
            assert np.array_equal(library[output], portable[output]), output


def test_no_token_gives_zeros(routers, tmp_path):
    model = copied(routers.after)
    graph_inputs = ["x_softmax_top2"]
    end = next(n for n in model.graph if n.metadata_props.get("moe_export.path") == "softmax_top2"
               and n.op_type == "GroupedExperts")  # fmt: skip
    alone = ir.Model(
        ir.convenience.extract(model.graph, graph_inputs, [end.outputs[0].name]),
        ir_version=model.ir_version,
    )
    alone.opset_imports.update(model.opset_imports)
    names = add_telemetry(alone)[0].names
    found = open_model(alone, tmp_path).run({"x_softmax_top2": np.zeros((0, E), np.float32)})
    assert [found[name].tolist() for name in names] == [[0] * E, [0.0] * E, 0]


def test_saturated_sigmoids_stay_a_distribution(routers, tmp_path):
    found = Counting(routers.after, tmp_path)
    logits = np.full((4, E), -60, np.float32)
    logits[:, 2] = -57
    feeds = {f"x_{n}": c.router.shaped(found.logits[n]) for n, c in CASES.items()}
    model = copied(routers.after)
    add_telemetry(model)
    outputs = open_model(model, tmp_path).run({**feeds, "x_sigmoid_of_chosen": logits})
    expected = torch.from_numpy(logits).double().sigmoid()
    expected = (expected / expected.sum(-1, keepdim=True)).mean(0)
    mean = outputs["sigmoid_of_chosen.mean_probability"]
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_everything_else_in_the_graph_stays(routers):
    model = copied(routers.after)
    nodes, outputs = list(model.graph), list(model.graph.outputs)
    before = [ir.to_proto(node) for node in nodes]
    add_telemetry(model)
    assert list(model.graph)[: len(nodes)] == nodes
    assert [ir.to_proto(node) for node in nodes] == before
    assert list(model.graph.outputs)[: len(outputs)] == outputs
    assert not [n for n in list(model.graph)[len(nodes) :] if n.domain]


def test_nodes_added_do_not_grow_with_the_experts(routers):
    model = copied(routers.after)
    size = len(model.graph)
    add_telemetry(model)
    assert len(model.graph) - size < 45 * len(CASES)


def test_an_output_of_the_same_name_is_refused(routers):
    model = copied(routers.after)
    model.graph.outputs[0].name = "capacity.tokens_per_expert"
    with pytest.raises(UsageError, match=r"capacity\.tokens_per_expert.*rename it"):
        add_telemetry(model)


def test_a_buffer_of_the_same_name_gives_way(routers, tmp_path):
    model = copied(routers.after)
    buffer = next(v for v in model.graph.initializers.values() if "renamed" not in str(v.name))
    buffer.name = "capacity.tokens_per_expert"
    names = [record.tokens_per_expert for record in add_telemetry(model)]
    assert "capacity.tokens_per_expert" in names
    assert {s.name for s in open_model(model, tmp_path).outputs} >= set(names)


def test_the_root_layer_is_named_without_a_dot():
    assert output_names("") == ("tokens_per_expert", "mean_probability", "dropped_tokens")
    assert output_names("a.b")[0] == "a.b.tokens_per_expert"


def test_a_graph_without_layers_is_refused():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    with pytest.raises(UnsupportedModelError, match="no MoE layer"):
        add_telemetry(ir.Model(graph, ir_version=10))


def test_an_old_opset_is_refused():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 17})
    with pytest.raises(UnsupportedModelError, match="needs opset 18; the graph has 17"):
        add_telemetry(ir.Model(graph, ir_version=10))
