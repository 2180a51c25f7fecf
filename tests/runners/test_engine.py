"""What the TensorRT runner does with an engine, on one that is not real."""

from __future__ import annotations

import numpy as np
import pytest

from moe_export.errors import BundleError, MoeExportError, UsageError
from moe_export.runners.engine import EngineRunner
from tests.runners.fake_tensorrt import FakeDevice, FakeEngine, FakeTensorRT


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def make_runner(tmp_path, device):
    def make(**options):
        (tmp_path / "model.plan").write_bytes(b"plan")
        tensorrt = FakeTensorRT(device, **options)
        shapes = {"x": ("tokens", 3), "n": ("tokens",)}
        runner = EngineRunner(
            tmp_path / "model.plan", tensorrt, tmp_path / "plugins.so", device, shapes
        )
        return runner, tensorrt.engine.context

    return make


def inputs(tokens, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((tokens, 3), np.float32), "n": rng.integers(0, 9, tokens)}


def check(runner, given):
    found = runner.run(given)
    np.testing.assert_array_equal(found["y"], 2 * given["x"])
    np.testing.assert_array_equal(found["m"], given["n"] + 1)


def test_inputs_and_outputs_are_what_the_engine_says(make_runner):
    runner, _ = make_runner()
    assert [(s.name, s.dtype, s.shape) for s in runner.inputs] == [
        ("x", "tensor(float)", ("tokens", 3)),
        ("n", "tensor(int64)", ("tokens",)),
    ]
    assert [s.name for s in runner.outputs] == ["y", "m"]


def test_every_run_gives_its_own_numbers(make_runner):
    runner, _ = make_runner()
    first = runner.run(inputs(2, seed=1))
    kept = first["y"].copy()
    for seed in range(2, 6):
        check(runner, inputs(2, seed))
    np.testing.assert_array_equal(first["y"], kept)  # a result is no view of a buffer


def test_shapes_that_come_again_are_a_graph(make_runner, device):
    runner, context = make_runner()
    for seed in range(5):
        check(runner, inputs(2, seed))
    assert (context.enqueued, device.graphs) == (2, 1)  # once plainly, once recorded


def test_each_set_of_shapes_has_its_own_buffers(make_runner, device):
    runner, _ = make_runner()
    for seed, tokens in enumerate([2, 5, 2, 5, 2, 5]):
        check(runner, inputs(tokens, seed))
    assert device.graphs == 2


def test_many_shapes_do_not_keep_memory_for_all_of_them(make_runner, device):
    runner, _ = make_runner()
    for round_ in range(2):
        for tokens in range(1, 9):
            check(runner, inputs(tokens, round_))
    check(runner, {"x": np.zeros((8, 3), np.float32), "n": np.zeros(3, np.int64)})
    assert device.released == 1
    check(runner, inputs(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input x is missing"),
        ({"z": np.zeros(1)}, "unknown input z"),
        ({"x": np.zeros((2, 3))}, "input x must be float32; found float64"),
        ({"x": np.zeros((9, 3), np.float32)}, r"between \[1, 3\] and \[8, 3\].*found \[9, 3\]"),
        ({"x": np.zeros((2, 4), np.float32)}, r"found \[2, 4\]"),
        ({"n": np.zeros((2, 1), np.int64)}, r"input n must lie between \[1\] and \[8\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(make_runner, change, message):
    runner, _ = make_runner()
    given = {name: array for name, array in (inputs(2) | change).items() if array is not None}
    with pytest.raises(UsageError, match=message):
        runner.run(given)


def test_what_tensorrt_refuses_is_an_error(make_runner):
    for option, message in (("takes_plugins", "plugins.so"), ("takes_plan", "model.plan")):
        with pytest.raises(BundleError, match=message):
            make_runner(**{option: False})
    runner, context = make_runner()
    context.works = False
    with pytest.raises(MoeExportError, match="could not run"):
        runner.run(inputs(2))


@pytest.mark.parametrize(("kind", "digits"), [("HALF", 10), ("BF16", 7)])
def test_half_precision_takes_and_gives_what_numpy_has(make_runner, monkeypatch, kind, digits):
    tensors = dict(FakeEngine.TENSORS)
    tensors |= {name: (tensors[name][0], kind) for name in "xy"}
    monkeypatch.setattr(FakeEngine, "TENSORS", tensors)
    runner, _ = make_runner()
    given = inputs(2) | {"x": np.full((2, 3), 1 + 2.0**-digits + 2.0**-20, np.float32)}
    found = runner.run(given)["y"]
    assert found.dtype == (np.float16 if kind == "HALF" else np.float32)
    assert (found == np.float32(1 + 2.0**-digits)).all()
    with pytest.raises(UsageError, match="input x must be float"):
        runner.run(given | {"x": np.zeros((2, 3))})
