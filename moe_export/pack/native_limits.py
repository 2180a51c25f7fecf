"""What TensorRT's own MoE layer is not documented to compute; ``native_moe.py`` names the sources.

Rules:

1. Experts are gated by SiLU, with or without biases. Factors and limits of SwiGLU are attributes of
   the node, and "not supported yet".
2. What an id out of range does is not said. In the contract it adds nothing; so ids have to come
   from a ``TopKGating`` over exactly the node's experts, which gives none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moe_export.errors import UnsupportedModelError
from moe_export.lower.stored_weights import ExpertAttributes, input_values, stored_tensor
from moe_export.ops.nodes import PATH_KEY
from moe_export.ops.spec import DOMAIN, GroupedExperts, TopKGating

_FLOATS = ("fp32", "fp16", "bf16")


def refuse_limits(nodes: Sequence[tuple[ir.Node, ExpertAttributes]]) -> None:
    """Refuse nodes that the layer does not take.

    Args:
        nodes: The nodes that hold experts' weights, with their attributes.

    Raises:
        UnsupportedModelError: names every layer that it does not take, and why.
    """
    reasons = {node: why_not_native(node, attributes) for node, attributes in nodes}
    if any(reasons.values()):
        raise UnsupportedModelError(_refusal(reasons))


def why_not_native(node: ir.Node, attributes: ExpertAttributes) -> str:
    """Why TensorRT's own layer does not take a node's experts; nothing where it does."""
    if not isinstance(attributes, GroupedExperts):
        return "its experts are no gated FFN, but operators between grouped products"
    reasons = []
    if not attributes.gated or attributes.activation != "silu":
        form = f"{attributes.activation}, {'gated' if attributes.gated else 'ungated'}"
        reasons.append(f"it takes experts gated by silu; these are {form}")
    plain = GroupedExperts.__dataclass_fields__
    factors = ("alpha", "limit", "up_offset")
    found = [n for n in factors if getattr(attributes, n) != plain[n].default]
    if found:
        listed = ", ".join(f"{name} = {getattr(attributes, name):g}" for name in found)
        reasons.append(f"factors and limits of SwiGLU are not supported yet: {listed}")
    if attributes.weight_on != "output":
        reasons.append("expert weights multiply what enters the experts, not their result")
    values = input_values(node, attributes)
    x, weight = values["x"].dtype, stored_tensor(values["up_weight"]).dtype
    if attributes.weight_type not in _FLOATS or x != weight:
        reasons.append(f"weights are {attributes.weight_type}, activations {_name(x)}: they differ")
    return "; ".join([*reasons, *_why_ids_may_be_out(node, attributes)])


def _name(dtype: ir.DataType | None) -> str:
    return dtype.name.lower() if dtype is not None else "of an unknown type"


def _why_ids_may_be_out(node: ir.Node, attributes: GroupedExperts) -> list[str]:
    """Why a node's ids may be out of range (rule 2)."""
    ids = input_values(node, attributes)["expert_ids"]
    router = ids.producer()
    what = "what it does with an id out of range is not documented, which here adds nothing"
    if router is None or (router.domain, router.op_type) != (DOMAIN, TopKGating.op_type):
        return [f"{what}: the layer's ids are not those of a TopKGating"]
    logits = router.inputs[0]
    num_logits = logits.shape[1] if logits is not None and logits.shape is not None else None
    first, count = attributes.first_expert, attributes.num_experts
    if first != 0 or num_logits != count:
        return [f"{what}: it holds experts {first} to {first + count - 1} of {num_logits}"]
    return []


def _refusal(reasons: Mapping[ir.Node, str]) -> str:
    """All layers that are refused, those of one reason together."""
    paths: dict[str, list[str]] = {}
    for node, reason in reasons.items():
        path = node.metadata_props[PATH_KEY] or "<root>"
        if reason:
            paths.setdefault(reason, []).append(path)
    lines = [f"{', '.join(found)}: {reason}" for reason, found in paths.items()]
    head = "TensorRT's own MoE layer does not take these layers; --moe plugin takes them all:"
    return "\n  ".join([head, *lines])
