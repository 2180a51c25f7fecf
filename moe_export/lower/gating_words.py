"""A router in words."""

from __future__ import annotations

from moe_export.ops.spec import TopKGating


def describe_gating(attributes: TopKGating) -> str:
    """Short words for people, such as ``softmax top-2, renormalized``."""
    score = "" if attributes.score_function == "identity" else f"{attributes.score_function} "
    bias = "+ bias " if attributes.has_selection_bias else ""
    parts = [f"{score}{bias}top-{attributes.top_k}"]
    if attributes.num_groups > 1:
        rule = "best" if attributes.group_score == "max" else "two best"
        rest = ", others 0" if attributes.excluded_score == "zero" else ""
        parts.append(
            f"{attributes.top_groups} of {attributes.num_groups} groups by their {rule}{rest}"
        )
    if attributes.weight_function != "score":
        parts.append(f"{attributes.weight_function} of the chosen")
    if attributes.renormalize:
        guard = "sum + " if attributes.epsilon_mode == "add" else "sum at least "
        epsilon = f" ({guard}{attributes.epsilon:.3g})" if attributes.epsilon else ""
        parts.append(f"renormalized{epsilon}")
    if attributes.scale != 1.0:
        parts.append(f"x {attributes.scale:.6g}")
    return ", ".join(parts)
