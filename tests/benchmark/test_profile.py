"""Layers' times in ONNX Runtime's profile."""

from __future__ import annotations

import json

import pytest

from moe_export.benchmark.profile import read_profile
from moe_export.errors import MoeExportError


def run(start):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": 100}


def node(name, start, duration):
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration}


def read(tmp_path, events, layers):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    return [dict(found.layers) for found in read_profile(path, layers)]


def test_nodes_of_a_layer_add_up_within_their_run(tmp_path):
    events = [  # ONNX Runtime writes a run behind its nodes
        {"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 5},
        node("a/TopKGating", 110, 2), node("a/GroupedExperts", 120, 30), run(100),
        node("a/TopKGating", 310, 3), node("a/GroupedExperts", 320, 40), run(300),
    ]  # fmt: skip
    assert read(tmp_path, events, ["a"]) == [
        {"a": pytest.approx(32e-6)},
        {"a": pytest.approx(43e-6)},
    ]


def test_paths_that_begin_alike_are_told_apart(tmp_path):
    names = ("layers.1/GroupedExperts", "layers.10/GroupedExperts", "layers.1#2/GroupedMatMul.2")
    events = [run(0), *(node(name, 10 + i, i + 1) for i, name in enumerate(names))]
    found = read(tmp_path, events, ["layers.1", "layers.10", "layers.1#2"])
    assert found == [
        {
            "layers.1": pytest.approx(1e-6),
            "layers.10": pytest.approx(2e-6),
            "layers.1#2": pytest.approx(3e-6),
        }
    ]


def test_the_models_own_layer_is_called_root(tmp_path):
    assert read(tmp_path, [run(0), node("root/GroupedExperts", 1, 7)], [""]) == [
        {"": pytest.approx(7e-6)}
    ]


def test_other_nodes_and_those_before_a_run_do_not_count(tmp_path):
    events = [node("a/GroupedExperts", 1, 9), run(5), node("MatMul", 6, 9), node("b/Mul", 7, 9)]
    assert read(tmp_path, events, ["a"]) == [{}]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "model_run"}]'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(MoeExportError, match="no profile"):
        read_profile(path, [])
