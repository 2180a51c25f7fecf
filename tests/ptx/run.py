"""Launches compiled PTX: ``load_kernel(path).launch(grid, threads, shared_bytes, arguments)``."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.ptx.arguments import Argument, Memory, argument_bytes
from tests.ptx.build import build, build_launcher
from tests.ptx.parse import parse
from tests.ptx.records import Kernel


class KernelError(Exception):
    """A launch that ended early: a fault that the runtime or a sanitizer reports, or a crash."""


def load_kernel(
    source: str | Path, entry: str | None = None, *, sanitize: str = ""
) -> LoadedKernel:
    """Compiles PTX for the CPU.

    Args:
        source: A path, or the text itself.
        entry: The kernel's name, of which there must be one if it is left out.
        sanitize: ``address`` or ``thread`` runs every launch in a process of its own, which has
            copies of the arrays that end exactly where the arrays do, under AddressSanitizer or
            ThreadSanitizer. ``process`` runs it there without either.

    Raises:
        PtxError: Something in it has no translation.
        ValueError: It has no such kernel.
    """
    kernels = load_kernels(source, sanitize=sanitize)
    if entry is None and len(kernels) == 1:
        return next(iter(kernels.values()))
    if entry not in kernels:
        raise ValueError(f"there are the kernels {', '.join(kernels)}, not {entry}")
    return kernels[entry]


def load_kernels(source: str | Path, *, sanitize: str = "") -> dict[str, LoadedKernel]:
    """As ``load_kernel``, every kernel by name."""
    is_path = isinstance(source, Path) or "\n" not in source
    text = Path(source).read_text() if is_path else str(source)
    name = Path(source).name if is_path else "kernel.ptx"
    library = build(text, sanitize=sanitize.replace("process", ""), name=name)
    return {kernel.name: LoadedKernel(kernel, library, sanitize) for kernel in parse(text).kernels}


@dataclass(frozen=True)
class LoadedKernel:
    """One kernel, ready to run on the CPU.

    Attributes:
        kernel: What PTX says of it.
        library: The shared object; ``runtime/thread.h`` says what it exports.
        sanitize: As ``load_kernel`` was told.
    """

    kernel: Kernel
    library: Path
    sanitize: str = ""

    def launch(
        self,
        grid: Sequence[int] | int,
        threads: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
        seed: int = 0,
    ) -> None:
        """Runs the kernel to its end; arrays are written in place.

        Args:
            grid: Blocks, up to three numbers.
            threads: Threads per block.
            shared_bytes: Dynamic shared memory of a block.
            arguments: One per parameter: an array or None for a pointer, a number, NumPy scalar or
                bytes, or a ``Struct``. Missing last ones are null: Triton's scratch pointers.
            seed: Draws the order in which blocks, warps and lanes run.

        Raises:
            KernelError: It did not come to its end.
        """
        sizes = (grid,) if isinstance(grid, int) else tuple(grid)
        sizes += (1,) * (3 - len(sizes))
        parameters = self.kernel.parameters
        given = [*arguments, *[None] * (len(parameters) - len(arguments))]
        if len(given) != len(parameters):
            raise ValueError(f"{len(given)} arguments for {len(parameters)} parameters")
        memory = Memory()
        data = [argument_bytes(p, a, memory) for p, a in zip(parameters, given, strict=True)]
        call = _Call(sizes, threads, shared_bytes, seed, data, memory)
        if self.sanitize:
            _run_process(self, call)
        else:
            _run_here(self, call)


@dataclass(frozen=True)
class _Call:
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    seed: int
    arguments: list[bytearray]
    memory: Memory = field(repr=False)


def _run_here(loaded: LoadedKernel, call: _Call) -> None:
    for argument, at, buffer in call.memory.pointers(call.arguments):
        address = call.memory.arrays[buffer].ctypes.data
        argument[at : at + 8] = address.to_bytes(8, "little")
    library = ctypes.CDLL(str(loaded.library))
    run = getattr(library, f"ptx_run_{loaded.kernel.name}")
    kept = [(ctypes.c_char * max(len(a), 1)).from_buffer(a or bytearray(1)) for a in call.arguments]
    pointers = (ctypes.c_void_p * max(len(kept), 1))(*(ctypes.addressof(each) for each in kept))
    grid = (ctypes.c_uint * 3)(*call.grid)
    if run(grid, call.threads, call.shared_bytes, call.seed & 0xFFFFFFFF, pointers):
        library.ptx_fault.restype = ctypes.c_char_p
        raise KernelError(library.ptx_fault().decode())


def _run_process(loaded: LoadedKernel, call: _Call) -> None:
    lines = [f"grid {' '.join(map(str, call.grid))}", f"threads {call.threads}"]
    lines += [f"shared {call.shared_bytes}", f"seed {call.seed & 0xFFFFFFFF}"]
    lines += [f"buffer {array.nbytes}" for array in call.memory.arrays]
    lines += [f"argument {len(argument)}" for argument in call.arguments]
    positions = {id(argument): i for i, argument in enumerate(call.arguments)}
    for argument, at, buffer in call.memory.pointers(call.arguments):
        lines.append(f"pointer {positions[id(argument)]} {at} {buffer}")
    arrays = b"".join(array.tobytes() for array in call.memory.arrays)
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "in"), Path(folder, "out")
        text = "\n".join([*lines, "data\n"]).encode()
        given.write_bytes(text + arrays + b"".join(map(bytes, call.arguments)))
        sanitize = loaded.sanitize.replace("process", "")
        words = [build_launcher(sanitize), loaded.library, loaded.kernel.name, given, made]
        # ThreadSanitizer's shadow memory needs addresses that are not drawn.
        prefix = ["setarch", "-R"] if sanitize == "thread" else []
        options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
        done = subprocess.run(
            [*prefix, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            env={"PATH": "/usr/bin:/bin", **options},
        )
        if done.returncode:
            raise KernelError(f"exit code {done.returncode}: {done.stderr.strip()[:6000]}")
        _take_back(made.read_bytes(), call.memory)


def _take_back(data: bytes, memory: Memory) -> None:
    begin = 0
    for array in memory.arrays:
        part = np.frombuffer(data, array.dtype, array.size, begin).reshape(array.shape)
        if array.flags.writeable:
            array[...] = part
        begin += array.nbytes
