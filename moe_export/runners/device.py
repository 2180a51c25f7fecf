"""A GPU's memory, stream and graphs, through its driver alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import EnvironmentLacksError

Array = NDArray[Any]

_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_COPY_BYTES = 1 << 30


class Device(Protocol):
    """Where kernels run."""

    name: str
    stream: int | None
    """What calls are to be launched on; None is the default one."""

    def allocate(self, size_bytes: int) -> int:
        """An address that is a multiple of 256; its bytes are those of NaN."""

    def upload(self, array: Array) -> int:
        """The address of a copy."""

    def download(self, address: int, like: Array) -> Array:
        """A copy of what lies there, of another array's shape and type."""

    def release(self) -> None:
        """Free everything that was allocated, pinned or recorded."""

    def pinned(self, size_bytes: int) -> Array:
        """``[size_bytes]`` uint8 of host memory that copies run from and to on their own."""

    def copy_in(self, address: int, pinned: Array) -> None:
        """Begin to copy pinned memory to the device, on the stream."""

    def copy_out(self, pinned: Array, address: int) -> None:
        """Begin to copy from the device to pinned memory, on the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record what ``call`` launches, as a CUDA graph.

        Returns:
            A function that launches it again on the stream.
        """

    def time_us(self, call: Callable[[], None], repeats: int) -> list[float]:
        """Microseconds that each of several runs takes on the device.

        The call is recorded once, as a CUDA graph, and the graph is run: what is timed is the
        kernels, as a server runs them, not Python.
        """

    def copy_rate(self) -> float:
        """Bytes per second that copying within the device's memory reads and writes."""


class DriverDevice:
    """The first GPU, through its driver alone.

    Raises:
        EnvironmentLacksError: there is no driver or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise EnvironmentLacksError(f"no NVIDIA driver is installed: {error}") from error
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode()
        # What undoes an allocation, and its argument.
        self._frees: list[tuple[str, object]] = []

    def _call(self, function: str, *arguments: object) -> None:
        result = getattr(self._driver, function)(*arguments)
        if result:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(result, ctypes.byref(text))
            reason = text.value.decode() if text.value else "unknown"
            raise EnvironmentLacksError(f"the NVIDIA driver refuses {function}: {reason}")

    def allocate(self, size_bytes: int) -> int:
        """See ``Device``."""
        address = ctypes.c_uint64()
        size = max(size_bytes, 1)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._frees.append(("cuMemFree_v2", ctypes.c_uint64(address.value)))
        self._call("cuMemsetD8_v2", address, ctypes.c_ubyte(0xFF), ctypes.c_size_t(size))
        return address.value

    def upload(self, array: Array) -> int:
        """See ``Device``."""
        data = np.ascontiguousarray(array)
        address = self.allocate(data.nbytes)
        source, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, size)
        return address

    def download(self, address: int, like: Array) -> Array:
        """See ``Device``; waits for what runs."""
        self._call("cuCtxSynchronize")
        data = np.empty_like(like, order="C")
        target, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), size)
        return data

    def release(self) -> None:
        """See ``Device``."""
        while self._frees:
            self._call(*self._frees.pop())

    def pinned(self, size_bytes: int) -> Array:
        """See ``Device``."""
        address = ctypes.c_void_p()
        size = max(size_bytes, 1)
        self._call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), 0)
        self._frees.append(("cuMemFreeHost", ctypes.c_void_p(address.value)))
        return np.ctypeslib.as_array(
            ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), shape=(size,)
        )[:size_bytes]

    def copy_in(self, address: int, pinned: Array) -> None:
        """See ``Device``."""
        source, size = ctypes.c_void_p(pinned.ctypes.data), ctypes.c_size_t(pinned.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self._stream())

    def copy_out(self, pinned: Array, address: int) -> None:
        """See ``Device``."""
        target, size = ctypes.c_void_p(pinned.ctypes.data), ctypes.c_size_t(pinned.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream())

    def synchronize(self) -> None:
        """See ``Device``."""
        self._call("cuStreamSynchronize", self._stream())

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``Device``."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream(), _THIS_THREAD)
        try:
            call()
        finally:
            self._call("cuStreamEndCapture", self._stream(), ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        self._frees.append(("cuGraphExecDestroy", ready))
        return lambda: self._call("cuGraphLaunch", ready, self._stream())

    def time_us(self, call: Callable[[], None], repeats: int) -> list[float]:
        """See ``Device``."""
        call()  # loads kernels, which must not happen while recording
        self.synchronize()
        return self._time(self.record(call), repeats)

    def copy_rate(self) -> float:
        """See ``Device``: of a copy that no cache holds."""
        source, target = self.allocate(_COPY_BYTES), self.allocate(_COPY_BYTES)

        def copy() -> None:
            addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
            self._call(
                "cuMemcpyDtoDAsync_v2", *addresses, ctypes.c_size_t(_COPY_BYTES), self._stream()
            )

        best_us = min(self._time(copy, 10))
        self.release()
        return 2 * _COPY_BYTES / (best_us * 1e-6)

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _time(self, call: Callable[[], None], repeats: int) -> list[float]:
        """By events on the stream, each run on its own."""
        begin, end = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (begin, end):
            self._call("cuEventCreate", ctypes.byref(event), 0)
        times = []
        for _ in range(repeats):
            self._call("cuEventRecord", begin, self._stream())
            call()
            self._call("cuEventRecord", end, self._stream())
            self._call("cuEventSynchronize", end)
            milliseconds = ctypes.c_float()
            self._call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
            times.append(1e3 * milliseconds.value)
        for event in (begin, end):
            self._call("cuEventDestroy_v2", event)
        return times
