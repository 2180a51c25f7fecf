"""The ops' bodies in standard ONNX operators, as model-local functions of the same domain and name.

A runtime that knows the op uses its kernel; any other runs the body. A body is written for one set
of attributes: structure (gated, biases, groups) cannot be chosen by an attribute inside a function.
"""

from __future__ import annotations

import dataclasses

import onnx.parser
import onnx_ir as ir

from moe_export.ops.portable_rows import combine_lines, dispatch_lines, matmul_lines
from moe_export.ops.spec import (
    DOMAIN,
    OUTPUT_NAMES,
    ExpertCombine,
    ExpertDispatch,
    GroupedExperts,
    GroupedMatMul,
    OpAttributes,
    TopKGating,
)

OPSET = 20


def function_body(attributes: OpAttributes, overload: str = "") -> ir.Function:
    """The op's meaning for ``attributes`` as a function of standard operators.

    Args:
        attributes: The attributes of the nodes that the body serves.
        overload: Tells bodies of the same op apart when a model needs several.
    """
    lines = _body_lines(attributes)
    outputs = ", ".join(OUTPUT_NAMES[attributes.op_type])
    names = ", ".join(field.name for field in dataclasses.fields(attributes))
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
        f"{attributes.op_type} <{names}> ({', '.join(attributes.input_names())}) => ({outputs})\n"
        "{\n" + "\n".join(lines) + "\n}\n"
    )
    proto = onnx.parser.parse_function(text)
    proto.overload = overload
    function: ir.Function = ir.from_proto(proto)
    return function


def _body_lines(attributes: OpAttributes) -> list[str]:
    match attributes:
        case TopKGating():
            return _gating_lines(attributes)
        case GroupedExperts():
            attributes.storage.check_plain("experts_c4")
            return _experts_lines(attributes)
        case ExpertDispatch():
            return dispatch_lines(attributes)
        case GroupedMatMul():
            attributes.storage.check_plain("matmul_c2")
            return matmul_lines(attributes)
        case ExpertCombine():
            return combine_lines(attributes)
    raise TypeError(f"{attributes.op_type} has no body in standard operators")


def _float(name: str, value: float) -> str:
    return f"{name} = Constant <value_float = {value!r}> ()"


def _ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = [{', '.join(map(str, values))}]> ()"


def _negative_infinity(name: str) -> list[str]:
    # The text form has no literal for infinity.
    return [
        _float(f"{name}_one", -1.0),
        _float(f"{name}_zero", 0.0),
        f"{name} = Div({name}_one, {name}_zero)",
    ]


_SCORES = {
    "softmax": ["{out} = Softmax <axis = -1> ({x})"],
    "sigmoid": ["{out} = Sigmoid({x})"],
    "sqrt_softplus": ["{out}_plus = Softplus({x})", "{out} = Sqrt({out}_plus)"],
    "identity": ["{out} = Identity({x})"],
}


def _score(function: str, out: str, x: str) -> list[str]:
    return [line.format(out=out, x=x) for line in _SCORES[function]]


def _gating_lines(attributes: TopKGating) -> list[str]:
    bias = "Add(score, selection_bias)" if attributes.has_selection_bias else "Identity(score)"
    lines = [
        *_score(attributes.score_function, "score", "logits"),
        f"biased = {bias}",
        "is_nan = IsNaN(biased)",
        *_negative_infinity("neg_inf"),
        "choice = Where(is_nan, neg_inf, biased)",
        *(_group_lines(attributes) if attributes.num_groups > 1 else ["kept = Identity(choice)"]),
        _ints("top_k", attributes.top_k),
        "best, ids = TopK <axis = -1, largest = 1, sorted = 1> (kept, top_k)",
        "expert_ids = Cast <to = 6> (ids)",
    ]
    if attributes.weight_function == "score":
        lines.append("weight = GatherElements <axis = 1> (score, ids)")
    else:
        lines.append("chosen = GatherElements <axis = 1> (logits, ids)")
        lines += _score(attributes.weight_function, "weight", "chosen")
    normalized = "weight"
    if attributes.renormalize:
        combine = "Add" if attributes.epsilon_mode == "add" else "Max"
        lines += [
            _ints("last_axis", -1),
            "total = ReduceSum <keepdims = 1> (weight, last_axis)",
            _float("epsilon", attributes.epsilon),
            f"guarded = {combine}(total, epsilon)",
            "normalized = Div(weight, guarded)",
        ]
        normalized = "normalized"
    return [*lines, _float("scale", attributes.scale), f"expert_weights = Mul({normalized}, scale)"]


def _group_lines(attributes: TopKGating) -> list[str]:
    excluded = (
        _negative_infinity("excluded")
        if attributes.excluded_score == "neg_inf"
        else [_float("excluded", 0.0)]
    )
    return [
        "full_shape = Shape(logits)",
        "num_tokens = Shape <start = 0, end = 1> (logits)",
        "num_experts = Shape <start = 1, end = 2> (logits)",
        _ints("num_groups", attributes.num_groups),
        "group_size = Div(num_experts, num_groups)",
        "block_shape = Concat <axis = 0> (num_tokens, num_groups, group_size)",
        "blocks = Reshape <allowzero = 1> (choice, block_shape)",
        _ints("scored", 1 if attributes.group_score == "max" else 2),
        "block_best, block_best_ids = TopK <axis = -1> (blocks, scored)",
        # Not ReduceSum: ONNX Runtime gives it a wrong shape when there is no token.
        "first_place = Constant <value_int = 0> ()",
        "best_score = Gather <axis = 2> (block_best, first_place)",
        *(
            ["block_score = Identity(best_score)"]
            if attributes.group_score == "max"
            else [
                "second_place = Constant <value_int = 1> ()",
                "second_score = Gather <axis = 2> (block_best, second_place)",
                "block_score = Add(best_score, second_score)",
            ]
        ),
        _ints("block_axis", -1),
        _ints("top_groups", attributes.top_groups),
        "group_best, group_ids = TopK <axis = -1> (block_score, top_groups)",
        "no_group = Greater(block_score, block_score)",
        "no_group_int = Cast <to = 7> (no_group)",
        "group_ids_shape = Shape(group_ids)",
        "ones = ConstantOfShape <value = int64[1] {1}> (group_ids_shape)",
        "kept_int = ScatterElements <axis = 1> (no_group_int, group_ids, ones)",
        "kept_group = Cast <to = 9> (kept_int)",
        "kept_block = Unsqueeze(kept_group, block_axis)",
        *excluded,
        "kept_blocks = Where(kept_block, blocks, excluded)",
        "kept = Reshape <allowzero = 1> (kept_blocks, full_shape)",
    ]


_ACTIVATIONS = {
    "silu": [
        "{out}_s = Mul({x}, alpha)",
        "{out}_g = Sigmoid({out}_s)",
        "{out} = Mul({x}, {out}_g)",
    ],
    "gelu": ["{out} = Gelu({x})"],
    "gelu_tanh": ['{out} = Gelu <approximate = "tanh"> ({x})'],
    "relu": ["{out} = Relu({x})"],
    "relu2": ["{out}_r = Relu({x})", "{out} = Mul({out}_r, {out}_r)"],
    "identity": ["{out} = Identity({x})"],
}


def _activate(attributes: GroupedExperts, out: str, x: str) -> list[str]:
    return [line.format(out=out, x=x) for line in _ACTIVATIONS[attributes.activation]]


def _inner_lines(attributes: GroupedExperts) -> list[str]:
    """From ``projected`` to ``h``."""
    if not attributes.gated:
        return _activate(attributes, "h", "projected")
    lines = ["gate, up = Split <axis = 1, num_outputs = 2> (projected)"]
    gate, up, activated = "gate", "up", "activated"
    if attributes.limit > 0:
        lines.append("up_clamped = Clip(up, neg_limit, limit)")
        up = "up_clamped"
        if attributes.limit_on == "input":
            lines.append("gate_clamped = Min(gate, limit)")
            gate = "gate_clamped"
    lines += _activate(attributes, "activated", gate)
    if attributes.limit > 0 and attributes.limit_on == "output":
        lines.append("activated_clamped = Min(activated, limit)")
        activated = "activated_clamped"
    return [*lines, f"shifted = Add({up}, up_offset)", f"h = Mul({activated}, shifted)"]


def _expert_lines(attributes: GroupedExperts) -> list[str]:
    """One expert with tokens: from ``places`` to ``updated``, ``sum_in`` with its rows added."""
    on_input = attributes.weight_on == "input"
    bias = attributes.has_bias
    lines = [
        "token = Gather <axis = 0> (places, zero)",
        "places_t = Transpose <perm = [1, 0]> (places)",
        "weight_row = GatherND(expert_weights, places_t)",
        "weight = Unsqueeze(weight_row, one)",
        "plain_rows = Gather <axis = 0> (x, token)",
        "rows = Mul(plain_rows, weight)" if on_input else "rows = Identity(plain_rows)",
        "up_matrix = Gather <axis = 0> (up_weight, expert)",
        "up_bias_row = Gather <axis = 0> (up_bias, expert)" if bias else "",
        f"projected = Gemm <transB = 1> (rows, up_matrix{', up_bias_row' if bias else ''})",
        *_inner_lines(attributes),
        "down_matrix = Gather <axis = 0> (down_weight, expert)",
        "down_bias_row = Gather <axis = 0> (down_bias, expert)" if bias else "",
        f"out = Gemm <transB = 1> (h, down_matrix{', down_bias_row' if bias else ''})",
        "weighted = Identity(out)" if on_input else "weighted = Mul(out, weight)",
        "token_column = Unsqueeze(token, one)",
        'updated = ScatterND <reduction = "add"> (sum_in, token_column, weighted)',
    ]
    return [line for line in lines if line]


def _experts_lines(attributes: GroupedExperts) -> list[str]:
    expert = "\n        ".join(_expert_lines(attributes))
    return [
        "ids = Cast <to = 7> (expert_ids)",
        f"first = Constant <value_int = {attributes.first_expert}> ()",
        "local = Sub(ids, first)",
        "zero = Constant <value_int = 0> ()",
        _ints("one", 1),
        _float("alpha", attributes.alpha),
        _float("limit", attributes.limit),
        _float("neg_limit", -attributes.limit),
        _float("up_offset", attributes.up_offset),
        "shape = Shape(x)",
        "nothing = ConstantOfShape <value = float[1] {0.0}> (shape)",
        f"num_experts = Constant <value_int = {attributes.num_experts}> ()",
        "always = Constant <value = bool {1}> ()",
        f"""y = Loop (num_experts, always, nothing) <body = each_expert
    (int64 expert, bool keep_on, float[T, H] sum_in) => (bool go_on, float[T, H] sum_out) {{
      go_on = Identity(keep_on)
      hit = Equal(local, expert)
      places = NonZero(hit)
      num_places = Shape <start = 1, end = 2> (places)
      num_rows = Squeeze(num_places)
      used = Greater(num_rows, zero)
      sum_out = If (used) <then_branch = run () => (float[T, H] updated) {{
        {expert}
      }}, else_branch = skip () => (float[T, H] unchanged) {{
        unchanged = Identity(sum_in)
      }}>
  }}>""",
    ]
