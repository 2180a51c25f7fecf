"""A GPU that is none: a bundle's graph in ONNX's evaluator, its MoE nodes in the GPU's kernels.

The evaluator rounds each operator's result to its type, as a strongly typed network does; kernels
are their compiled PTX, run on the CPU.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator

from moe_export.ops.spec import GroupedExperts, TopKGating
from tests.engine.models import op
from tests.plugins.cuda.on_cpu import HostDevice

HALF = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


class StandInGpu:
    """Runs graphs of bundles for GPUs.

    Args:
        library: The GPU library on the CPU.
        folder: The bundle.
        dtype: Type of its activations.
    """

    def __init__(self, library, folder, dtype):
        self._library, self._folder, self._dtype = library, folder, dtype
        library.use()

    def run(self, graph, inputs):
        """Outputs by name of an ONNX file's bytes."""
        proto = onnx.load_model_from_string(graph)
        load_external_data_for_model(proto, str(self._folder))
        kept = {"TopKGating": self._gate, "GroupedExperts": self._multiply}
        ops = [op(kind, kept[kind.op_type]) for kind in (TopKGating, GroupedExperts)]
        evaluator = ReferenceEvaluator(proto, new_ops=ops)
        names = [value.name for value in proto.graph.output]
        return dict(zip(names, evaluator.run(None, dict(inputs)), strict=True))

    def _gate(self, a, inputs):
        device, (logits, *bias) = HostDevice(), inputs
        outputs = [np.empty((len(logits), a.top_k), kind) for kind in (np.int32, np.float32)]
        addresses = [device.allocate(output.nbytes) for output in outputs]
        given = [device.upload(array) for array in (logits, *bias)] + [None] * (not bias)
        self._library.call("top_k_gating", a, "fp32", *logits.shape, *given, *addresses, None)
        return tuple(map(device.download, addresses, outputs))

    def _multiply(self, a, inputs):
        device, dtype = HostDevice(), HALF[self._dtype]
        x, ids, weights, up, down, *biases = inputs
        y = np.empty(x.shape, dtype)
        target = device.allocate(y.nbytes)
        size = self._library.number("grouped_experts_workspace", a, self._dtype, *ids.shape)
        stored = [device.upload(array) for array in (weights, up, down, *biases)]
        self._library.call(
            "grouped_experts",
            *(a, self._dtype, 0, *ids.shape),
            *(device.upload(np.asarray(x, dtype)), device.upload(ids), int(ids.dtype == np.int64)),
            *(*stored, *[None] * (2 - len(biases)), target, device.allocate(size), None),
        )
        return (device.download(target, y),)


def bundle_graph(folder):
    """The bytes of a bundle's own graph."""
    return ir.to_proto(ir.load(folder / "model.onnx")).SerializeToString()
