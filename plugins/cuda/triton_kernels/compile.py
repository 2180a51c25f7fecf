"""Compiles a variant of the grouped matrix product for a target, without a GPU."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .variants import NATIVE_FP8_SINCE, Variant, schedule

GROUP = 8
"""Tiles of rows that go through the weights together."""

HINTED = (
    *("x", "weight", "scales", "row_weights", "y", "y_fp32", "pairs", "ends", "tiles"),
    *("weight_stride", "scale_stride", "zero_stride", "x_stride", "y_stride"),
    *("columns", "y_width", "block"),
)
"""Arguments that are multiples of 16: without that promise nothing is loaded asynchronously."""

INTEGERS_64 = ("weight_stride", "scale_stride", "zero_stride", "x_stride", "y_stride")
INTEGERS_32 = ("n", "columns", "y_width", "block", "top_k", "activation")
FLAGS = ("use_zeros", "use_bias", "use_row_weights", "fp32_output", "limits_output")
FLOATS = ("alpha", "limit", "up_offset")


@dataclass(frozen=True)
class CompiledKernel:
    """What launching takes to know.

    Attributes:
        name: Of the variant.
        entry: Of the function in the image.
        target: Compute capability.
        threads: Of a block.
        shared_bytes: Dynamic shared memory of a block.
        outputs: Rows of the weight that a block multiplies with.
        registers: Of a thread.
        stack_bytes: Of a thread; anything but 0 is slow.
    """

    name: str
    entry: str
    target: int
    threads: int
    shared_bytes: int
    outputs: int
    registers: int = 0
    stack_bytes: int = 0


def signature(variant: Variant) -> dict[str, str]:
    """The type of every argument that is not a constant, in order."""
    stored = {"int8": "*i8", "fp8": "*i8", "int4": "*u8"}
    types = {
        "x": f"*{variant.element}",
        "weight": stored.get(variant.weight, f"*{variant.weight}"),
        "scales": "*fp32",
        "zeros": "*i8",
        "bias": "*fp32",
        "row_weights": "*fp32",
        "y": f"*{variant.element}",
        "y_fp32": "*fp32",
        "pairs": "*i32",
        "ends": "*i32",
        "tiles": "*i32",
    }
    types |= dict.fromkeys(INTEGERS_64, "i64") | dict.fromkeys(INTEGERS_32, "i32")
    # A flag travels as int32: one byte in PTX, and no runtime's idea of bool in between.
    return types | dict.fromkeys(FLAGS, "i32") | dict.fromkeys(FLOATS, "fp32")


def compile_variant(variant: Variant, target: int, cache: Path) -> tuple[CompiledKernel, Path]:
    """Compile, or find in the cache.

    Args:
        variant: Which.
        target: Compute capability, 90 for 9.0.
        cache: Folder of what was compiled before.

    Returns:
        The kernel, and the path of its machine code; its PTX lies beside, as ``.ptx``.

    Raises:
        RuntimeError: The kernel wants memory of the driver's own, which launching does not give.
    """
    import triton

    parts = [triton.__version__, assembler_version(), kernel_source(), GROUP, HINTED, target]
    parts += [asdict(variant), asdict(schedule(variant, target)), signature(variant)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    image = cache / f"{variant.name}_sm{target}_{key}.cubin"
    record = image.with_suffix(".json")
    if not record.exists():
        kernel, cubin, ptx = _compile(variant, target)
        write_whole(image, cubin)
        write_whole(image.with_suffix(".ptx"), ptx.encode())
        write_whole(record, json.dumps(asdict(kernel)).encode())
    return CompiledKernel(**json.loads(record.read_text())), image


def kernel_source() -> str:
    """The kernel without comments and docstrings: what they say changes no code."""
    tree = ast.parse((Path(__file__).parent / "grouped_matmul.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.Module) and ast.get_docstring(node):
            del node.body[0]
    return ast.unparse(tree)


def _compile(variant: Variant, target: int) -> tuple[CompiledKernel, bytes, str]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from .grouped_matmul import grouped_matmul

    cut = schedule(variant, target)
    constants = {
        "GATED": variant.gated,
        "WEIGHT": variant.weight,
        "TWO_BLOCKS": variant.two_blocks,
        "CONVERTS_FP8": target >= NATIVE_FP8_SINCE,
        "BM": variant.rows,
        "BN": cut.outputs,
        "GROUP": GROUP,
    }
    types = signature(variant) | dict.fromkeys(constants, "constexpr")
    if list(types) != grouped_matmul.arg_names:
        raise RuntimeError(f"arguments of the kernel are {grouped_matmul.arg_names}")
    hints = {(list(types).index(name),): [["tt.divisibility", 16]] for name in HINTED}
    source = ASTSource(fn=grouped_matmul, signature=types, constexprs=constants, attrs=hints)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TRITON_CACHE_DIR": folder, "TRITON_DISABLE_LINE_INFO": "1"}
        os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
        compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{variant.name} for SM{target} wants scratch memory of the launcher")
    kernel = CompiledKernel(
        variant.name,
        metadata.name,
        target,
        32 * metadata.num_warps,
        metadata.shared,
        cut.outputs,
        *read_resources(compiled.asm["cubin"])[metadata.name],
    )
    return kernel, compiled.asm["cubin"], compiled.asm["ptx"]


def read_resources(cubin: bytes) -> dict[str, tuple[int, int]]:
    """Registers and bytes of stack that a thread of each kernel takes."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", text)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


def assembler_version() -> str:
    """Of the assembler that Triton is told to take, or its own."""
    path = os.environ.get("TRITON_PTXAS_PATH")
    if path is None:
        return "triton's"
    return subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that nobody sees half of."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)
