"""A module as one C++ unit."""

from __future__ import annotations

from collections.abc import Iterable

# Each import registers the opcodes that the file translates.
import tests.ptx.translate.arithmetic
import tests.ptx.translate.async_copy
import tests.ptx.translate.control
import tests.ptx.translate.conversion
import tests.ptx.translate.logic
import tests.ptx.translate.memory
import tests.ptx.translate.tensor_memory
import tests.ptx.translate.warp  # noqa: F401
from tests.ptx.parse import TYPE_BYTES
from tests.ptx.records import BranchTargets, Kernel, Label, Module, Statement, Variable
from tests.ptx.translate.line import Names, cpp_label, cpp_register, translate_statement
from tests.ptx.translate.tensor_core import list_results

_HEADERS = (
    "arithmetic",
    "async_copy",
    "conversion",
    "memory",
    "tensor_core",
    "tensor_memory",
    "thread",
    "warp",
)
_UNSET = {1: "0xbd", 2: "0xbdbd", 4: "0x7fbdbdbdu", 8: "0x7ffdbdbdbdbdbdbdull"}
_RUN = (
    "const unsigned grid[3], unsigned threads, unsigned shared_bytes, unsigned seed, "
    "void* const* arguments"
)
_EXPORT = 'extern "C" __attribute__((visibility("default")))'


def translate_module(module: Module, file_name: str) -> str:
    """C++ that runs the module's kernels on the runtime.

    Args:
        module: What PTX says.
        file_name: Its name, for debuggers and sanitizers.

    Raises:
        UnsupportedPtxError: A statement has no translation.
    """
    arrays = [v for v in module.variables if v.space in ("global", "const")]
    lines = [f'#include "{header}.h"' for header in _HEADERS]
    lines += ["using namespace ptx;", "namespace {"]
    lines += [line for variable in arrays for line in _array(variable)]
    for number, kernel in enumerate(module.kernels):
        lines += _kernel(module, kernel, number, file_name)
    lines += ["}  // namespace"]
    for number, kernel in enumerate(module.kernels):
        lines += [f"{_EXPORT} int ptx_run_{kernel.name}({_RUN}) {{"]
        lines += [f"  return launch(entry_{number}, grid, threads, shared_bytes, seed, arguments);"]
        lines += ["}"]
    first = module.kernels[0].name
    lines += [f"{_EXPORT} int ptx_run({_RUN}) {{"]
    lines += ["  return launch(entry_0, grid, threads, shared_bytes, seed, arguments);", "}"]
    lines += [f'{_EXPORT} const char* ptx_name() {{ return "{first}"; }}']
    return "\n".join(lines) + "\n"


def _array(variable: Variable) -> list[str]:
    """A module's array, at an address of the host."""
    values = ", ".join(str(byte) for byte in variable.data)
    return [
        f"alignas({variable.align}) unsigned char {_array_name(variable)}[{variable.size}]"
        f" = {{{values}}};"
    ]


def _array_name(variable: Variable) -> str:
    return "array" + cpp_register(variable.name)


def _kernel(module: Module, kernel: Kernel, number: int, file_name: str) -> list[str]:
    shared, static_bytes = _place_shared((*module.variables, *kernel.variables))
    local = [v for v in kernel.variables if v.space == "local"]
    values = dict(shared)
    for variable in (*local, *(v for v in module.variables if v.space in ("global", "const"))):
        values[variable.name] = f"reinterpret_cast<uint64_t>({_array_name(variable)})"
    for position, parameter in enumerate(kernel.parameters):
        values[parameter.name] = f"({position}u << kParameterShift)"
    names = Names(
        kernel.registers,
        values,
        {p.name: (i, p.size) for i, p in enumerate(kernel.parameters)},
        frozenset(label.name for label in kernel.body if isinstance(label, Label)),
        {b.name: b.labels for b in kernel.body if isinstance(b, BranchTargets)},
        list_results(line for line in kernel.body if isinstance(line, Statement)),
    )
    lines = [f"void kernel_{number}(Thread& t) {{"]
    lines += _registers(kernel)
    lines += [f"  alignas({v.align}) unsigned char {_array_name(v)}[{v.size}];" for v in local]
    lines += list(_body(kernel, names, file_name))
    return [*lines, "}", *_entry(kernel, number, static_bytes)]


def _registers(kernel: Kernel) -> Iterable[str]:
    """All registers, with nonsense in them: who reads one before it is written gets that."""
    for name, type_ in kernel.registers.items():
        size = TYPE_BYTES[type_]
        kind, unset = ("bool", "false") if type_ == "pred" else (f"b{8 * size}", _UNSET[size])
        yield f"  {kind} {cpp_register(name)} = {unset};"


def _body(kernel: Kernel, names: Names, file_name: str) -> Iterable[str]:
    for line in kernel.body:
        match line:
            case Label():
                yield f"{cpp_label(line.name)}:;"
            case Statement():
                yield f'#line {line.line} "{file_name}"'
                yield f"  {translate_statement(line, names)}"


def _place_shared(variables: Iterable[Variable]) -> tuple[dict[str, str], int]:
    """Offsets of shared variables, as text, and the bytes of those whose size is known; those that
    a launch sizes begin behind them.
    """
    offsets, end = {}, 0
    shared = [variable for variable in variables if variable.space == "shared"]
    for variable in (v for v in shared if v.size):
        begin = -(-end // variable.align) * variable.align
        offsets[variable.name] = f"{begin}u"
        end = begin + variable.size
    dynamic = [variable for variable in shared if not variable.size]
    align = max((variable.align for variable in dynamic), default=1)
    end = -(-end // align) * align
    offsets.update({variable.name: f"{end}u" for variable in dynamic})
    return offsets, end


def _entry(kernel: Kernel, number: int, static_bytes: int) -> list[str]:
    sizes = ", ".join(str(p.size) for p in kernel.parameters) or "0"
    aligns = ", ".join(str(p.align) for p in kernel.parameters) or "0"
    fields = f'"{kernel.name}", kernel_{number}, {static_bytes}, {kernel.threads}'
    fields += f", {len(kernel.parameters)}, bytes_{number}, align_{number}"
    return [
        f"const uint32_t bytes_{number}[] = {{{sizes}}};",
        f"const uint32_t align_{number}[] = {{{aligns}}};",
        f"const KernelEntry entry_{number} = {{{fields}}};",
    ]
