"""TensorRT and a GPU as the runner sees them, without either: an engine that doubles and counts."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace

import numpy as np

TYPES = SimpleNamespace(
    **{name: SimpleNamespace(name=name) for name in ("FLOAT", "HALF", "BF16", "INT64")}
)


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class FakeDevice:
    """Host memory; what is launched on the stream runs when somebody waits for it."""

    name = "a fake GPU"
    stream = 7

    def __init__(self):
        self.memory = {}
        self.queue = []
        self.recording = None
        self.released = 0
        self.graphs = 0
        self._next = 256

    def allocate(self, size_bytes):
        address, self._next = self._next, self._next + size_bytes + 256
        self.memory[address] = np.full(size_bytes, 0xFF, np.uint8)
        return address

    def pinned(self, size_bytes):
        return np.zeros(size_bytes, np.uint8)

    def enqueue(self, work):
        (self.queue if self.recording is None else self.recording).append(work)

    def copy_in(self, address, pinned):
        source = pinned.reshape(-1).view(np.uint8)
        self.enqueue(lambda: self.memory[address].__setitem__(slice(None), source))

    def copy_out(self, pinned, address):
        target = pinned.reshape(-1).view(np.uint8)
        self.enqueue(lambda: target.__setitem__(slice(None), self.memory[address]))

    def synchronize(self):
        while self.queue:
            self.queue.pop(0)()

    def record(self, call):
        self.recording = []
        try:
            call()
            recorded, self.graphs = self.recording, self.graphs + 1
        finally:
            self.recording = None
        return lambda: self.queue.extend(recorded)

    def release(self):
        self.memory.clear()
        self.released += 1


class FakeEngine:
    """x [T, 3] float32 and n [T] int64 in; y = 2 x and m = n + 1 out; T from 1 to 8."""

    TENSORS = {"x": (Mode.INPUT, "FLOAT"), "n": (Mode.INPUT, "INT64")} | {
        "y": (Mode.OUTPUT, "FLOAT"),
        "m": (Mode.OUTPUT, "INT64"),
    }

    def __init__(self, device):
        self.device = device
        self.num_io_tensors = len(self.TENSORS)
        self.context = FakeContext(self)

    def get_tensor_name(self, index):
        return list(self.TENSORS)[index]

    def get_tensor_mode(self, name):
        return self.TENSORS[name][0]

    def get_tensor_dtype(self, name):
        return getattr(TYPES, self.TENSORS[name][1])

    def get_tensor_shape(self, name):
        return (-1, 3) if name in "xy" else (-1,)

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        tail = (3,) if name == "x" else ()
        return [(1, *tail), (4, *tail), (8, *tail)]

    def create_execution_context(self):
        return self.context


class FakeContext:
    def __init__(self, engine):
        self.engine = engine
        self.shapes = {}
        self.addresses = {}
        self.enqueued = 0
        self.works = True

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return [name for name in ("x", "n") if name not in self.shapes]

    def get_tensor_shape(self, name):
        return self.shapes[{"y": "x", "m": "n"}.get(name, name)]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream == self.engine.device.stream
        if not self.works:
            return False
        self.enqueued += 1
        at = dict(self.addresses)
        memory = self.engine.device.memory

        def work():
            x, y = memory[at["x"]], memory[at["y"]]
            if self.engine.TENSORS["x"][1] == "FLOAT":
                y.view(np.float32)[:] = 2 * x.view(np.float32)
            else:
                y[:] = x
            memory[at["m"]].view(np.int64)[:] = memory[at["n"]].view(np.int64) + 1

        self.engine.device.enqueue(work)
        return True


class FakeTensorRT:
    """The module."""

    __version__ = "1.2.3"
    TensorIOMode = Mode

    class Logger:
        ERROR = 0

        def __init__(self, level):
            self.level = level

    def __init__(self, device, *, takes_plugins=True, takes_plan=True):
        self.engine = FakeEngine(device)
        self._takes_plugins, self._takes_plan = takes_plugins, takes_plan

    def get_plugin_registry(self):
        return SimpleNamespace(load_library=lambda _: object() if self._takes_plugins else None)

    def Runtime(self, _logger):  # noqa: N802 - its name
        engine = self.engine if self._takes_plan else None
        return SimpleNamespace(deserialize_cuda_engine=lambda _: engine)
