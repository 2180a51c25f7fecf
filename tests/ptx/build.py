"""Compiles PTX for the CPU: ``python -m tests.ptx.build KERNEL.ptx -o KERNEL.so``."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.ptx.parse import parse
from tests.ptx.records import PtxError
from tests.ptx.translate.module import translate_module

RUNTIME = Path(__file__).parent / "runtime"
CACHE = Path(__file__).resolve().parents[2] / "build" / "ptx_runner"
SANITIZERS = ("", "address", "thread")

_COMPILER = os.environ.get("CXX", "g++")
_FLAGS = ("-std=c++17", "-g1", "-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing")
_HIDDEN = ("-fvisibility=hidden",)
# Loops must stay loops: ThreadSanitizer sees a memcpy wherever it is called from.
_RUNTIME_FLAGS = ("-O2", "-ftree-vectorize", "-fno-tree-loop-distribute-patterns", *_HIDDEN)
_KERNEL_FLAGS = ("-O1", *_HIDDEN)
_INSTRUMENTED = ("kernel_memory.cpp",)
_NO_PART_OF_KERNELS = ("launcher.cpp",)


def build(text: str, *, sanitize: str = "", name: str = "kernel.ptx") -> Path:
    """Compiles one PTX text, or finds what was compiled of it before.

    Args:
        text: PTX with at least one kernel.
        sanitize: ``address``, ``thread``, or nothing.
        name: What debuggers and sanitizers call it.

    Returns:
        A shared object that exports what ``runtime/thread.h`` says.

    Raises:
        PtxError: Something in the text has no translation.
    """
    module = parse(text)
    if not module.kernels:
        raise PtxError(f"{name} has no kernel")
    source = translate_module(module, name)
    objects = [_compile_runtime(unit, sanitize) for unit in sorted(RUNTIME.glob("*.cpp"))
               if unit.name not in _NO_PART_OF_KERNELS]  # fmt: skip
    flags = (*_FLAGS, *_KERNEL_FLAGS, *_sanitizer_flags(sanitize, instrumented=True))
    target = CACHE / f"{_digest(source, _runtime_text(), *flags)}.so"
    if not target.exists():
        written = target.with_suffix(f".{os.getpid()}.cpp")
        written.write_text(source)
        try:
            command = [*flags, f"-I{RUNTIME}", str(written), *map(str, objects), "-shared"]
            _compile(command, target)
        finally:
            written.unlink()
    return target


def build_launcher(sanitize: str) -> Path:
    """The program that runs a sanitized kernel: see ``launcher.cpp``."""
    flags = ("-std=c++17", "-O1", "-g1", *_sanitizer_flags(sanitize, instrumented=True))
    source = RUNTIME / "launcher.cpp"
    target = CACHE / f"{_digest(source.read_text(), *flags)}.launcher"
    if not target.exists():
        _compile([*flags, str(source), "-ldl"], target)
    return target


def _sanitizer_flags(sanitize: str, *, instrumented: bool) -> tuple[str, ...]:
    """ThreadSanitizer must not see the machine's own memory, only the kernels'."""
    if sanitize not in SANITIZERS:
        raise ValueError(f"sanitize must be one of {SANITIZERS}, not {sanitize!r}")
    if sanitize == "thread":
        return ("-DPTX_TSAN", "-fsanitize=thread") if instrumented else ("-DPTX_TSAN",)
    return ("-fsanitize=address",) if sanitize else ()


def _compile_runtime(unit: Path, sanitize: str) -> Path:
    instrumented = sanitize != "thread" or unit.name in _INSTRUMENTED
    flags = (*_FLAGS, *_RUNTIME_FLAGS, *_sanitizer_flags(sanitize, instrumented=instrumented))
    target = CACHE / f"{unit.stem}.{_digest(_runtime_text(), *flags)}.o"
    if not target.exists():
        _compile([*flags, "-c", str(unit)], target)
    return target


def _runtime_text() -> str:
    return "".join(path.read_text() for path in sorted(RUNTIME.iterdir()) if path.is_file())


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join((_COMPILER, *texts)).encode()).hexdigest()[:24]


def _compile(arguments: Sequence[str], target: Path) -> None:
    """Writes ``target`` whole or not at all: others may build the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = [_COMPILER, *arguments, "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[:4000]}")
    unfinished.replace(target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile PTX for the CPU.")
    parser.add_argument("ptx", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sanitize", choices=SANITIZERS[1:], default="")
    chosen = parser.parse_args(arguments)
    try:
        built = build(chosen.ptx.read_text(), sanitize=chosen.sanitize, name=chosen.ptx.name)
    except PtxError as error:
        print(f"error: {chosen.ptx.name}: {error}", file=sys.stderr)
        return 3
    chosen.output.write_bytes(built.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
