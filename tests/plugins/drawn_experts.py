"""Layers for hypothesis: odd sizes, every storage, activation and form."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from moe_export.ops import reference
from moe_export.ops.spec import GroupedExperts
from moe_export.pack.panels import pack_rows

STORAGES = [
    ("fp32", 0, False),
    ("fp16", 0, False),
    ("bf16", 0, False),
    ("int8", 0, False),
    *(("int4", block, zero) for block in (32, 64, 128) for zero in (False, True)),
    ("mxfp4", 32, False),
]


@st.composite
def layers(draw, storages=tuple(STORAGES)):
    """Attributes of a row-major layer, and its inputs by name."""
    weight_type, block, zero = draw(st.sampled_from(storages))
    unit = 32 if weight_type == "mxfp4" else 1
    width = st.integers(1, 150 // unit).map(lambda n: n * unit)
    gated = draw(st.booleans())
    attributes = GroupedExperts(
        num_experts=draw(st.integers(1, 6)),
        hidden_size=draw(width),
        intermediate_size=draw(width),
        gated=gated,
        activation=draw(
            st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2", "identity"])
        ),
        limit=draw(st.sampled_from([0.0, 0.75])) if gated else 0.0,
        up_offset=draw(st.sampled_from([0.0, 1.0])) if gated else 0.0,
        has_bias=draw(st.booleans()),
        weight_on=draw(st.sampled_from(["output", "input"])),
        first_expert=draw(st.sampled_from([0, 3])),
        weight_type=weight_type,
        block_size=block,
        has_zero_point=zero,
    )
    tokens, top_k = draw(st.sampled_from([0, 1, 2, 7, 40])), draw(st.integers(1, 6))
    skewed = draw(st.booleans())
    return attributes, _inputs(attributes, tokens, top_k, skewed, draw(st.integers(0, 99)))


def _inputs(attributes, tokens, top_k, skewed, seed):
    rng = np.random.default_rng(seed)
    a = attributes
    # Some ids lie outside; skewed, one expert has nearly all tokens and others have none.
    last = a.first_expert + (1 if skewed else a.num_experts + 2)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    inputs = {
        "x": normal(tokens, a.hidden_size),
        "expert_ids": rng.integers(max(0, a.first_expert - 1), last, (tokens, top_k)),
        "expert_weights": normal(tokens, top_k),
    }
    shapes = {"up": (a.up_rows, a.hidden_size), "down": (a.hidden_size, a.intermediate_size)}
    parts = {name: _stored(rng, a, *shape) for name, shape in shapes.items()}
    for part in ("weight", "bias", "scale", "zero"):
        for name, (rows, _) in shapes.items():
            if part == "bias" and a.has_bias:
                inputs[f"{name}_bias"] = normal(a.num_experts, rows)
            elif part in parts[name]:
                inputs[f"{name}_{part}"] = parts[name][part]
    return {name: inputs[name] for name in a.input_names()}


def _stored(rng, attributes, rows, columns):
    """Random codes of ``[E, rows, columns]`` weights of about 1 / sqrt(columns)."""
    shape = (attributes.num_experts, rows, columns)
    size = 1 / np.sqrt(columns)
    kind = attributes.weight_type
    if kind in ("fp32", "fp16", "bf16"):
        dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[kind]
        return {"weight": (rng.standard_normal(shape) * size).astype(dtype)}
    if kind in ("int8", "fp8"):
        scale = rng.uniform(size / 128, size / 32, shape[:2]).astype(np.float32)
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        if kind == "fp8":  # the two codes that are no number
            codes[codes == -1], codes[codes == 127] = -2, 126
            scale /= 8
        return {"weight": codes, "scale": scale}
    packed = rng.integers(-128, 128, (*shape[:2], -(-columns // 2))).astype(np.int8)
    blocks = (*shape[:2], -(-columns // attributes.block_size))
    if kind == "mxfp4":
        return {"weight": packed, "scale": rng.integers(120, 125, blocks).astype(np.int8)}
    parts = {"weight": packed, "scale": rng.uniform(size / 8, size / 2, blocks).astype(np.float32)}
    if attributes.has_zero_point:
        parts["zero"] = rng.integers(0, 16, blocks).astype(np.int8)
    return parts


def packed_inputs(attributes, inputs):
    """The inputs with weights, scales and zero points in the layout ``cpu_v1``."""
    kept = {n: v for n, v in inputs.items() if not n.endswith(("_weight", "_scale", "_zero"))}
    for name in ("up", "down"):
        kept[f"{name}_weight"] = np.stack(
            [
                pack_rows(
                    attributes.weight_type,
                    *(
                        None if (value := inputs.get(f"{name}_{part}")) is None else value[e]
                        for part in ("weight", "scale", "zero")
                    ),
                    block_size=attributes.block_size,
                    gated=attributes.gated and name == "up",
                )
                for e in range(attributes.num_experts)
            ]
        )
    order = ["x", "expert_ids", "expert_weights", "up_weight", "down_weight"]
    return {n: kept[n] for n in [*order, *(n for n in kept if n.endswith("_bias"))]}


def expected_output(attributes, inputs):
    """What the reference makes of a layer."""
    tensors = dict(inputs)
    return reference.grouped_experts(
        *(
            tensors.pop(n)
            for n in ("x", "expert_ids", "expert_weights", "up_weight", "down_weight")
        ),
        attributes,
        **tensors,
    )
