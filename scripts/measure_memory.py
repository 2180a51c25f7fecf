"""Measure the memory that a build takes: anonymous memory of its whole process tree, at its peak.

    scripts/measure_memory.py [--gigabytes 2] [--folder DIR]

Writes Hugging Face checkpoints in bfloat16, float32, MXFP4 and FP8, and a ``model.pt`` with lists
of experts, of the given size in float32; builds each with and without parity. Prints, as Markdown,
the peak as a multiple of the exported weights. Memory that a file backs is not counted: the kernel
takes it back without swapping.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memory_sources import (
    GIGABYTE,
    write_checkpoint,
    write_fp8,
    write_module,
    write_mxfp4,
)

_INTERVAL = 0.02
# Largest multiple of the model, and what is added, in gigabytes.
BOUNDS = {True: (1.6, 1.0), False: (0.3, 1.0)}


@dataclass(frozen=True)
class Case:
    """One build.

    Attributes:
        name: What is built.
        source: On the command line.
        options: Further ones.
        verify: Whether it is compared with eager.
    """

    name: str
    source: str
    options: tuple[str, ...]
    verify: bool


def process_tree(root: int) -> Iterator[int]:
    """Ids of a process and all that it started."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from process_tree(int(child))


def anonymous_bytes(root: int) -> int:
    """Anonymous memory of a process tree; processes that have just ended count nothing."""
    total = 0
    try:
        for process in process_tree(root):
            status = Path(f"/proc/{process}/status").read_text()
            line = next((li for li in status.splitlines() if li.startswith("RssAnon")), "0 0")
            total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def run(case: Case, folder: Path) -> tuple[int, int, float]:
    """Build one case: peak of the anonymous memory and exported bytes, and seconds."""
    output = folder / "bundle"
    command = [sys.executable, "-m", "moe_export", "build", case.source, "-o", str(output)]
    command += [*case.options, "--overwrite", *([] if case.verify else ["--no-verify"])]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(_INTERVAL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    exported = (output / "model.onnx.data").stat().st_size
    return peak, exported, time.perf_counter() - start


def main() -> int:
    """Measure every case; 1 if one is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the models are written; kept")
    parser.add_argument("--only", help="cases whose name holds this text")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="moe-export-memory-"))
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        "safetensors, bfloat16": (
            str(write_checkpoint(folder, arguments.gigabytes, "bfloat16")),
            (),
        ),
        "safetensors, float32": (str(write_checkpoint(folder, arguments.gigabytes, "float32")), ()),
        "GPT-OSS, MXFP4": (str(write_mxfp4(folder, arguments.gigabytes)), ()),
        "DeepSeek-V3, FP8 in blocks": (str(write_fp8(folder, arguments.gigabytes)), ()),
        "model.pt, lists of experts": (
            str(write_module(folder, arguments.gigabytes)),
            ("--trust", "--input", "input=8,1024"),
        ),
    }
    print("| source | parity | exported | peak | bound | time |")
    print("|---|---|---|---|---|---|")
    above = 0
    for name, (source, options) in sources.items():
        for verify in (True, False):
            if arguments.only and arguments.only not in name:
                continue
            peak, exported, seconds = run(Case(name, str(source), options, verify), folder)
            times, more = BOUNDS[verify]
            bound = times * exported + more * GIGABYTE
            above += peak > bound
            print(
                f"| {name} | {'yes' if verify else 'no'} | {exported / GIGABYTE:.2f} GB "
                f"| {peak / GIGABYTE:.2f} GB = {peak / exported:.2f}x "
                f"| {times}x + {more:.0f} GB | {seconds:.0f} s |",
                flush=True,
            )
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
