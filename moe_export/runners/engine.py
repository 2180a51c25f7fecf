"""Run a TensorRT engine: pinned buffers, one stream, a CUDA graph for shapes that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.errors import BundleError, MoeExportError, UsageError
from moe_export.runners.arrays import Array
from moe_export.runners.device import Device
from moe_export.runners.half import round_to_bfloat16, widen_bfloat16
from moe_export.runners.onnxruntime import Signature

# TensorRT's names of types, and ours.
_TYPES = {
    "FLOAT": ("float", np.float32),
    "HALF": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),  # its bits
    "INT32": ("int32", np.int32),
    "INT64": ("int64", np.int64),
    "BOOL": ("bool", np.bool_),
    "INT8": ("int8", np.int8),
    "UINT8": ("uint8", np.uint8),
}
# Sets of shapes whose buffers are kept.
_MOST_BINDINGS = 8

Shapes = tuple[tuple[int, ...], ...]


@dataclass
class _Buffer:
    """One tensor on both sides."""

    host: Array
    device: int


@dataclass
class _Binding:
    """What belongs to one set of input shapes.

    Attributes:
        buffers: By tensor.
        launch: How it is run: TensorRT's call, once, then a graph of it.
        runs: So far.
    """

    buffers: dict[str, _Buffer]
    launch: Callable[[], None]
    runs: int = 0


class EngineRunner:
    """An engine on a GPU; not for several threads at once.

    Args:
        plan: The engine's file.
        tensorrt: The module ``tensorrt`` or ``tensorrt_rtx``.
        plugins: The plugin library.
        device: The GPU.
        signature: Symbolic sizes of inputs and outputs by name, as the bundle says them.

    Raises:
        BundleError: TensorRT does not take the engine or the plugins.
    """

    def __init__(
        self,
        plan: Path,
        tensorrt: Any,  # noqa: ANN401 - one of two modules, or a test's
        plugins: Path,
        device: Device,
        signature: Mapping[str, tuple[int | str, ...]],
    ) -> None:
        self._device = device
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        if tensorrt.get_plugin_registry().load_library(str(plugins)) is None:
            raise BundleError(f"TensorRT {tensorrt.__version__} does not load {plugins}")
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise BundleError(f"TensorRT {tensorrt.__version__} does not take {plan}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BundleError(f"TensorRT cannot make an execution context of {plan}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = tensorrt.TensorIOMode.INPUT
        ordered = [(n, self._engine.get_tensor_mode(n) == is_input) for n in names]
        self.inputs = tuple(self._signature(n, signature) for n, first in ordered if first)
        self.outputs = tuple(self._signature(n, signature) for n, first in ordered if not first)
        self._bindings: OrderedDict[Shapes, _Binding] = OrderedDict()

    def _type(self, name: str) -> tuple[str, Any]:
        found = self._engine.get_tensor_dtype(name).name
        if found not in _TYPES:
            raise BundleError(f"the engine's {name} is {found}, which NumPy has no type for")
        return _TYPES[found]

    def _signature(self, name: str, symbolic: Mapping[str, tuple[int | str, ...]]) -> Signature:
        shape = symbolic.get(name, tuple(self._engine.get_tensor_shape(name)))
        return Signature(name, f"tensor({self._type(name)[0]})", shape)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine once.

        Args:
            inputs: Arrays by input name, of the types that ``self.inputs`` lists and of shapes that
                the engine's profile takes.

        Returns:
            Arrays by output name.

        Raises:
            UsageError: an input is missing, unknown, of another type, or outside the profile.
            MoeExportError: TensorRT refuses to run.
        """
        feeds = self._check(inputs)
        shapes = tuple(array.shape for array in feeds.values())
        if shapes not in self._bindings:
            self._make_room()
            self._bindings[shapes] = self._bind(feeds)
        self._bindings.move_to_end(shapes)
        binding = self._bindings[shapes]
        for name, array in feeds.items():
            buffer = binding.buffers[name]
            buffer.host.reshape(-1).view(np.uint8)[:] = array.reshape(-1).view(np.uint8)
        self._launch(binding)
        self._device.synchronize()
        return {s.name: self._result(s.name, binding.buffers[s.name].host) for s in self.outputs}

    def _result(self, name: str, host: Array) -> Array:
        return widen_bfloat16(host) if self._type(name)[0] == "bfloat16" else host.copy()

    def _check(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [s.name for s in self.inputs]
        if unknown := sorted({*inputs} - {*names}):
            raise UsageError(f"unknown input {unknown[0]}; the bundle takes {', '.join(names)}")
        feeds = {}
        for expected in self.inputs:
            name = expected.name
            if name not in inputs:
                raise UsageError(f"input {name} is missing; the bundle takes {', '.join(names)}")
            array = self._typed(name, np.ascontiguousarray(inputs[name]))
            least, _, most = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0))
            fits = len(array.shape) == len(least) and all(
                low <= size <= high
                for low, size, high in zip(least, array.shape, most, strict=True)
            )
            if not fits:
                raise UsageError(
                    f"input {name} must lie between {list(least)} and {list(most)}, which the "
                    f"engine was built for; found {list(array.shape)}"
                )
            feeds[name] = array
        return feeds

    def _typed(self, name: str, array: Array) -> Array:
        """An input in its type; half precision takes float32 too, rounded."""
        kind, dtype = self._type(name)
        if array.dtype == np.float32 and kind == "bfloat16":
            return round_to_bfloat16(array)
        if array.dtype == np.float32 and kind == "float16":
            return array.astype(np.float16)
        if array.dtype != dtype or kind == "bfloat16":
            wanted = "float32" if kind == "bfloat16" else np.dtype(dtype)
            raise UsageError(f"input {name} must be {wanted}; found {array.dtype}")
        return array

    def _make_room(self) -> None:
        """Give up the buffers of all shapes where there are too many."""
        if len(self._bindings) >= _MOST_BINDINGS:
            self._bindings.clear()
            self._device.release()

    def _bind(self, feeds: Mapping[str, Array]) -> _Binding:
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                raise MoeExportError(f"TensorRT refuses shape {list(array.shape)} of {name}")
        if missing := self._context.infer_shapes():
            raise MoeExportError(f"TensorRT cannot infer shapes: it lacks {', '.join(missing)}")
        buffers = {}
        for signature in (*self.inputs, *self.outputs):
            name = signature.name
            shape = tuple(self._context.get_tensor_shape(name))
            if min(shape, default=1) < 0:
                raise MoeExportError(f"the shape of {name} depends on the inputs' values: {shape}")
            dtype = np.dtype(self._type(name)[1])
            size = prod(shape) * dtype.itemsize
            host = self._device.pinned(size).view(dtype).reshape(shape)
            buffers[name] = _Buffer(host, self._device.allocate(size))
        return _Binding(buffers, launch=lambda: self._enqueue(buffers))

    def _launch(self, binding: _Binding) -> None:
        """The first run loads kernels and settles; the second one is recorded, then replayed."""
        if binding.runs < 2:
            self._select(binding)
        if binding.runs == 1:
            binding.launch = self._device.record(binding.launch)
        binding.launch()
        binding.runs += 1

    def _select(self, binding: _Binding) -> None:
        """Tell TensorRT shapes and addresses: another set of shapes may have come between."""
        for signature in self.inputs:
            self._context.set_input_shape(
                signature.name, binding.buffers[signature.name].host.shape
            )
        for name, buffer in binding.buffers.items():
            self._context.set_tensor_address(name, buffer.device)

    def _enqueue(self, buffers: Mapping[str, _Buffer]) -> None:
        for signature in self.inputs:
            buffer = buffers[signature.name]
            self._device.copy_in(buffer.device, buffer.host)
        if not self._context.execute_async_v3(self._device.stream or 0):
            raise MoeExportError("TensorRT could not run the engine")
        for signature in self.outputs:
            buffer = buffers[signature.name]
            self._device.copy_out(buffer.host, buffer.device)
