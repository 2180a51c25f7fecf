"""TensorRT's own MoE layer in NumPy, as NVIDIA documents it, and what its parser makes of a file.

Sources: TensorRT documentation, "MoE (Mixture of Experts)"; onnx-tensorrt, docs/TRT_custom_ops.md.
As a program it prints a file's layers: ``python -m tests.engine.trt_moe MODEL PLUGINS``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
from onnx.reference.op_run import OpRun

from moe_export.engine import build, worker


def trt_moe(x, ids, scores, gate, up, down, *biases):
    """The layer with SiLU.

    Args:
        x: ``[B, S, H]``.
        ids, scores: ``[B, S, K]``.
        gate, up: ``[E, H, I]``.
        down: ``[E, I, H]``.
        *biases: None, or of gate and up ``[E, I]``, of down ``[E, H]``.

    Returns:
        ``[B, S, H]`` float64.
    """
    x, gate, up, down, *biases = (a.astype(np.float64) for a in (x, gate, up, down, *biases))
    gate_bias, up_bias, down_bias = biases or (np.zeros((len(gate), 1)),) * 3
    y = np.zeros_like(x)
    for place in np.ndindex(ids.shape):
        expert, token = ids[place], x[place[:2]]
        g = token @ gate[expert] + gate_bias[expert]
        u = token @ up[expert] + up_bias[expert]
        inner = g / (1 + np.exp(-g)) * u
        y[place[:2]] += float(scores[place]) * (inner @ down[expert] + down_bias[expert])
    return y


class TRT_MoE(OpRun):  # noqa: N801 - the evaluator finds an operator by its class's name
    """The layer for ONNX's evaluator."""

    op_domain = "trt"

    def _run(self, *inputs, activation_type=0):
        assert activation_type == 1
        return (trt_moe(*inputs).astype(inputs[0].dtype),)


def parsed_layers(model, plugins, scratch):
    """MoE layers and plugins that TensorRT-RTX finds in a file, by name."""
    with build._library_path("tensorrt-rtx", scratch) as variables:
        done = subprocess.run(
            [sys.executable, "-m", "tests.engine.trt_moe", str(model), str(plugins)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _print_layers(model, plugins):
    trt, log = worker._import_tensorrt("tensorrt_rtx")
    library = worker._load_plugins(trt, plugins, log)
    from polygraphy.backend.trt import create_network

    _, network = create_network(strongly_typed=True)
    worker._parse(trt, network, model, library, log)
    found = {name: {"op": kind} for name, (kind, _) in worker._plugin_layers(trt, network).items()}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.MOE:
            layer.__class__ = trt.IMoELayer
            inputs = [layer.get_input(n) for n in range(layer.num_inputs)]
            found[layer.name] = {
                "op": "TRT_MoE",
                "activation": layer.activation_type.name,
                "shapes": [list(tensor.shape) for tensor in inputs],
                "types": [tensor.dtype.name for tensor in inputs],
                "output": list(layer.get_output(0).shape),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    _print_layers(*sys.argv[1:])
