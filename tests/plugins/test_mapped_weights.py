"""Packed weights are read where the file is mapped: no copy, and processes share the pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from moe_export.ops import spec
from moe_export.runners.library import ort_library_path

# One layer of Qwen3-30B-A3B: 2.4 GB in float32.
LAYER = spec.GroupedExperts(
    num_experts=128, hidden_size=2048, intermediate_size=768, weight_layout="cpu_v1"
)
UP_BYTES, DOWN_BYTES = 2 * 768 * 2048 * 4, 2048 * 768 * 4
MOST_ANONYMOUS = 60 << 20

# Opens a session, reads every expert, says what its memory is once the other process has too.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime as ort

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) << 10 for name, rest in (line.split(":") for line in lines)}

model, library = sys.argv[1:]
options = ort.SessionOptions()
options.register_custom_ops_library(library)
options.intra_op_num_threads = 2
x = np.ones((16, 2048), np.float32)
before = memory()["Anonymous"]
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
opened = memory()["Anonymous"]
ids = np.arange(128, dtype=np.int32).reshape(16, 8)
y = session.run(None, {"x": x, "expert_ids": ids, "expert_weights": np.ones((16, 8), np.float32)})
print("ready", flush=True)
sys.stdin.readline()
after = memory()
print(json.dumps({"opened": opened - before, "ran": after["Anonymous"] - before,
                  "rss": after["Rss"], "pss": after["Pss"], "finite": bool(np.isfinite(y).all())}))
"""


def _write_model(folder: Path) -> Path:
    """The layer alone; its weights are zeros in a file that takes no room on the disk."""
    data = folder / "model.data"
    with data.open("wb") as file:
        file.truncate(LAYER.num_experts * (UP_BYTES + DOWN_BYTES))
    stored = []
    offset = 0
    for name, size in (("up_weight", UP_BYTES), ("down_weight", DOWN_BYTES)):
        tensor = TensorProto(
            name=name, data_type=TensorProto.INT8, dims=[LAYER.num_experts, size], data_location=1
        )
        length = LAYER.num_experts * size
        for key, value in (("location", data.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        stored.append(tensor)
        offset += length
    kinds = {"x": TensorProto.FLOAT, "expert_ids": TensorProto.INT32, "expert_weights": 1}
    node = helper.make_node(
        LAYER.op_type, LAYER.input_names(), ["y"], domain=spec.DOMAIN, **LAYER.to_onnx()
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, kind, ["T", None]) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 2048])],
        stored,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(spec.DOMAIN, spec.VERSION)]
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_share_the_mapped_weights(tmp_path):
    model = _write_model(tmp_path)
    command = [sys.executable, "-c", CHILD, str(model), str(ort_library_path())]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    found = []
    for child in children:  # both hold their pages until both have said so
        child.stdin.write("go\n")
        child.stdin.flush()
        found.append(json.loads(child.stdout.readline()))
    for child in children:
        assert child.wait(60) == 0
    weights = LAYER.num_experts * (UP_BYTES + DOWN_BYTES)
    for memory in found:
        assert memory["finite"]
        assert memory["opened"] < MOST_ANONYMOUS
        assert memory["ran"] < MOST_ANONYMOUS
        assert memory["rss"] > weights
    # The first to answer is measured while the other still holds its half.
    assert found[0]["pss"] < weights * 0.6
