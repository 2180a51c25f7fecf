"""Who computes the experts of an engine: this package's plugins or TensorRT's own MoE layer.

``auto`` takes the plugins. Their kernels were run and compared, on CPUs; TensorRT's layer was only
parsed. NVIDIA documents that its builder takes NVFP4 weights with FP8 activations of known scales
(release notes of 10.16), which this package does not write: such scales take data to calibrate on.
Other types are in the parser's schema only.
"""

from __future__ import annotations

from moe_export.engine.environment import NATIVE_CAPABILITIES, EngineEnvironment
from moe_export.plan import BuildPlan

_DOCUMENTED = "NVIDIA documents it for NVFP4 weights with FP8 activations"


def describe_choice(plan: BuildPlan, environment: EngineEnvironment, num_layers: int) -> str | None:
    """What became of the layers, for people; None where a GPU leaves no choice or it was made.

    Args:
        plan: Gives ``moe``, and the type of the activations.
        environment: Gives the GPUs.
        num_layers: MoE layers of the model.
    """
    if plan.moe == "native":
        compared = ". What was compared is the same graph with this package's experts"
        return (
            f"experts of all {num_layers} layers are TensorRT's own MoE layer, in "
            f"{plan.dtype or 'fp32'}. {_DOCUMENTED}; this form was only ever parsed"
            f"{compared if plan.verify else ''}"
        )
    if plan.moe == "auto" and set(environment.compute_capabilities) <= set(NATIVE_CAPABILITIES):
        return (
            f"experts of all {num_layers} layers are this package's plugins. These GPUs also have "
            f"TensorRT's own MoE layer, which --moe native takes. {_DOCUMENTED}"
        )
    return None
