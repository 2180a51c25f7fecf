"""A process that parses ONNX files and builds engines of them with TensorRT-RTX, without a GPU.

Reads a request per line, ``{"model", "profile", "capability"}``, and answers each with a line. A
process of its own, since a plugin that goes wrong could end the tests'.
"""

from __future__ import annotations

import ctypes
import json
import sys

import tensorrt_rtx as trt


class Logger(trt.ILogger):
    """Keeps errors."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.lines.append(message)


def describe_plugins(network):
    """Name, kind of layer and outputs of each plugin of a parsed network."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    found = []
    for layer in layers:
        if layer.type == trt.LayerType.PLUGIN_V3:
            outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
            found.append(
                {"name": layer.name, "outputs": [[list(o.shape), o.dtype.name] for o in outputs]}
            )
    return found


def build(logger, request):
    """What TensorRT-RTX makes of one request."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    with open(request["model"], "rb") as file:  # noqa: PTH123 - pathlib reads in more steps
        parsed = parser.parse(file.read())
    if not parsed:
        return {"parsed": False, "built": False}
    answer = {"parsed": True, "plugins": describe_plugins(network)}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, request["capability"]), 0)
    profile = builder.create_optimization_profile()
    for name, (least, best, largest) in request["profile"].items():
        profile.set_shape(name, least, best, largest)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return answer | {"built": False}
    content = bytes(plan)
    seen = [name for name in request["look_for"] if name.encode() in content]
    return answer | {"built": True, "seen": seen}


def main():
    """Answer requests until there are no more."""
    library = sys.argv[1]
    logger = Logger()
    trt.get_plugin_registry().load_library(library)
    last_error = ctypes.CDLL(library).moe_export_last_error
    last_error.restype = ctypes.c_char_p
    for line in sys.stdin:
        before = last_error()
        logger.lines.clear()
        answer = build(logger, json.loads(line))
        reason = last_error().decode()
        answer["reason"] = reason if reason != before.decode() else ""
        print(json.dumps(answer | {"log": logger.lines}), flush=True)


if __name__ == "__main__":
    main()
