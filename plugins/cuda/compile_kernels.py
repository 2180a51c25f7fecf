"""Compiles every GPU kernel and writes what the libraries embed.

    python compile_kernels.py --targets 80,90 --nvcc nvcc --ptxas ptxas -o DIR

DIR/images.S embeds machine code and PTX, DIR/catalogue.inc is the table of kernels that
kernel_catalogue.cpp includes, DIR/images/ holds what is embedded, and DIR/ptx/ every kernel's PTX,
which the tests run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from triton_kernels.compile import CompiledKernel, compile_variant, read_resources, write_whole  # noqa: E402
from triton_kernels.variants import TARGETS, list_variants  # noqa: E402

BASE = 80
"""The target whose PTX is embedded for GPUs that there is no machine code for."""


@dataclass(frozen=True)
class Image:
    """A file to embed and the kernels in it; ``target`` 0 is PTX."""

    path: Path
    target: int
    kernels: tuple[CompiledKernel, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--nvcc", type=Path, required=True)
    parser.add_argument("--ptxas", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    targets = sorted({int(target) for target in options.targets.split(",")})
    if BASE not in targets or not set(targets) <= set(TARGETS):
        parser.error(f"--targets are {BASE} and any of {', '.join(map(str, TARGETS))}")
    # The assembler of the toolkit: a newer one makes code that older drivers refuse.
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        os.environ[name] = f"{options.ptxas}"
    options.cache.mkdir(parents=True, exist_ok=True)
    images = compile_cuda(options.nvcc, targets, options.cache)
    images += compile_triton(targets, options.cache, options.jobs)
    write_output(images, options.output)


def default_cache() -> Path:
    """Where compiled kernels are kept from one build to the next."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "moe-export" / "kernels"


def compile_cuda(nvcc: Path, targets: list[int], cache: Path) -> list[Image]:
    """kernels.cu for every target, and as PTX."""
    command = [
        f"{nvcc}",
        "-std=c++17",
        "-O3",
        "-Werror",
        "all-warnings",
        f"-I{HERE}",
        f"-I{HERE.parent}",
    ]
    sources = sorted(
        [*HERE.glob("*.cu*"), *HERE.glob("*_call*.h"), *HERE.glob("../spec/*.h"), HERE / "device.h"]
    )
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    texts = [path.read_text() for path in sources]
    key = hashlib.sha256(json.dumps([version, command[1:5], texts]).encode()).hexdigest()[:24]
    images = []
    for target in [0, *targets]:
        path = cache / f"kernels_sm{target}_{key}{'.cubin' if target else '.ptx'}"
        if not path.exists():
            form = ["-cubin", f"-arch=sm_{target}"] if target else ["-ptx", f"-arch=compute_{BASE}"]
            part = path.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, *form, f"{HERE / 'kernels.cu'}", "-o", f"{part}"], check=True)
            part.replace(path)
        images.append((path, target))
    names = re.findall(r"\.entry (\w+)", images[0][0].read_text())
    result = []
    for path, target in images:
        taken = read_resources(path.read_bytes()) if target else dict.fromkeys(names, (0, 0))
        kernels = (CompiledKernel(name, name, target, 0, 0, 0, *taken[name]) for name in names)
        result.append(Image(path, target, tuple(kernels)))
    return result


def compile_triton(targets: list[int], cache: Path, jobs: int) -> list[Image]:
    """Every variant for every target; the base's PTX too."""
    work = [(variant, target) for target in targets for variant in list_variants()]
    images = []
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(compile_variant, *item, cache) for item in work]
        for number, ((variant, target), future) in enumerate(zip(work, futures, strict=True), 1):
            kernel, path = future.result()
            print(f"[{number}/{len(work)}] {variant.name} for SM{target}", flush=True)
            images.append(Image(path, target, (kernel,)))
            if target == BASE:
                images.append(Image(path.with_suffix(".ptx"), 0, (kernel,)))
    return images


def write_output(images: list[Image], output: Path) -> None:
    """Write images, the assembly that embeds them, and the table."""
    folder = output / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    assembly, declarations, rows = [".section .rodata"], [], []
    for number, image in enumerate(images):
        first = image.kernels[0].name if len(image.kernels) == 1 else "kernels"
        copy = folder / f"{first}{f'_sm{image.target}.cubin' if image.target else '.ptx'}"
        shutil.copyfile(image.path, copy)
        symbol = f"moe_export_image_{number}"
        # PTX is text that ends with a zero.
        assembly += [".balign 64", f".globl {symbol}", f".hidden {symbol}", f"{symbol}:"]
        assembly += [f'.incbin "{copy.resolve()}"', ".byte 0"]
        declarations.append(f'extern "C" const unsigned char {symbol}[];')
        rows += [
            f'{{"{kernel.name}", "{kernel.entry}", {image.target}, {kernel.threads}, '
            f"{kernel.shared_bytes}, {kernel.outputs}, {kernel.registers}, {symbol}}},"
            for kernel in image.kernels
        ]
    ptx = output / "ptx"
    shutil.rmtree(ptx, ignore_errors=True)
    ptx.mkdir()
    for image in images:
        if image.target and len(image.kernels) == 1:
            name = f"{image.kernels[0].name}_sm{image.target}.ptx"
            shutil.copyfile(image.path.with_suffix(".ptx"), ptx / name)
    shutil.copyfile(folder / "kernels.ptx", ptx / "kernels.ptx")
    write_table([kernel for image in images if image.target for kernel in image.kernels], output)
    table = [*declarations, "const CatalogueEntry kCatalogue[] = {", *rows, "};"]
    write_whole(
        output / "images.S",
        "\n".join([*assembly, '.section .note.GNU-stack,"",@progbits', ""]).encode(),
    )
    write_whole(output / "catalogue.inc", "\n".join([*table, ""]).encode())


def write_table(kernels: list[CompiledKernel], output: Path) -> None:
    """Write kernels.csv, a line per kernel and target."""
    lines = ["name,target,threads,shared_bytes,outputs,registers,stack_bytes"]
    lines += [
        f"{kernel.name},{kernel.target},{kernel.threads},{kernel.shared_bytes},"
        f"{kernel.outputs},{kernel.registers},{kernel.stack_bytes}"
        for kernel in sorted(kernels, key=lambda kernel: (kernel.name, kernel.target))
    ]
    write_whole(output / "kernels.csv", "\n".join([*lines, ""]).encode())


if __name__ == "__main__":
    main()
