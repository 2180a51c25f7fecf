"""How our time grows with tokens and experts, and what choosing the experts adds to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from moe_bench import ours
from moe_bench.layers import Floats, Layer, draw_weights
from moe_bench.routing import Bind, draw_call
from moe_bench.sessions import open_session
from moe_export.ops import spec
from moe_export.ops.record import WeightType
from moe_export.runners.library import ort_library_path

Label = tuple[str, int]
Runs = Mapping[Label, Callable[[], Floats]]

TOKENS_LAYER = Layer("tokens", 1024, 512, 64, 4)
# As many as in the models whose routers have most to choose from, and small experts.
GATING_LAYER = Layer("gating", 2048, 512, 256, 8)
NUM_HIT, EXPERTS_TOKENS = 8, 16
GATINGS = {
    "sigmoid, groups": spec.TopKGating(
        top_k=8,
        score_function="sigmoid",
        has_selection_bias=True,
        num_groups=8,
        top_groups=4,
        group_score="top2_sum",
        renormalize=True,
        scale=2.5,
    ),
    "softmax": spec.TopKGating(top_k=8, renormalize=True),
}


def time_in_turns(runs: Runs, rounds: int, empty_cache: Callable[[], object]) -> dict[Label, float]:
    """The least seconds of each run over rounds in which all take turns: other work only adds.

    Args:
        runs: What to time.
        rounds: How often each is timed, after one call that is not.
        empty_cache: Called before each, but not before routers: the product before them has just
            written their logits, and they are called once more instead.
    """
    for run in runs.values():
        run()
    times: dict[Label, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            (run if label[0] in GATINGS else empty_cache)()
            start = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - start)
    return {label: min(found) for label, found in times.items()}


def bind_tokens(folder: Path, weight_type: WeightType, tokens: list[int]) -> Runs:
    """Calls of one layer with more and more tokens."""
    bind = _prepare(folder, TOKENS_LAYER, weight_type)
    return {("tokens", count): bind(draw_call(TOKENS_LAYER, count, seed=0)) for count in tokens}


def bind_experts(folder: Path, weight_type: WeightType, experts: list[int]) -> Runs:
    """The same call of layers with more and more experts, of which it hits the same number."""
    runs = {}
    few = dataclasses.replace(TOKENS_LAYER, experts=NUM_HIT)
    call = draw_call(few, EXPERTS_TOKENS, seed=0)
    for count in experts:
        bind = _prepare(folder, dataclasses.replace(few, experts=count), weight_type)
        spread = call.expert_ids * np.int32(count // NUM_HIT)
        runs["experts", count] = bind(dataclasses.replace(call, expert_ids=spread))
    return runs


def bind_gatings(folder: Path, weight_type: WeightType, tokens: list[int]) -> Runs:
    """Both routers and the experts behind them, each in a session of its own."""
    bind = _prepare(folder, GATING_LAYER, weight_type)
    runs = {}
    for count in tokens:
        runs["experts", count] = bind(draw_call(GATING_LAYER, count, seed=0))
        for name, gating in GATINGS.items():
            runs[name, count] = _bind_gating(folder, gating, count)
    return runs


def _prepare(folder: Path, layer: Layer, weight_type: WeightType) -> Bind:
    """Our session; the float32 weights are deleted once they are packed."""
    own = folder / f"{layer.name}{layer.experts}"
    own.mkdir()
    bind = ours.preparer(weight_type, 128 if weight_type == "int4" else 0)(draw_weights(layer, own))
    for name in ("up", "down"):
        (own / f"{name}.bin").unlink()
    return bind


def _bind_gating(folder: Path, gating: spec.TopKGating, tokens: int) -> Callable[[], Floats]:
    experts = GATING_LAYER.experts
    generator = np.random.default_rng(0)
    inputs = {"logits": generator.standard_normal((tokens, experts), dtype=np.float32)}
    if gating.has_selection_bias:
        inputs["selection_bias"] = generator.standard_normal(experts, dtype=np.float32)
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in inputs.items()
    ]
    chosen = [
        helper.make_tensor_value_info("ids", TensorProto.INT32, [tokens, gating.top_k]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, [tokens, gating.top_k]),
    ]
    node = helper.make_node(
        gating.op_type, [*inputs], ["ids", "weights"], domain=spec.DOMAIN, **gating.to_onnx()
    )
    graph = helper.make_graph([node], "router", given, chosen)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(spec.DOMAIN, spec.VERSION)]
    path = folder / "router.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    session = open_session(path, ort_library_path())

    def run() -> Floats:
        result: Floats = session.run(["weights"], inputs)[0]
        return result

    return run
