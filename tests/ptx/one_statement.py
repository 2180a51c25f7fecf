"""Kernels of one statement each, to compare what it computes with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.ptx.parse import TYPE_BYTES
from tests.ptx.run import LoadedKernel, load_kernels

HEAD = ".version 8.7\n.target sm_90a\n.address_size 64\n"
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Case:
    """Statements that turn ``%a``, ``%b`` and ``%c`` into ``%d``.

    Attributes:
        text: The statements; a predicate ``%p`` and ``%q`` and registers ``%t0 .. %t3`` of 32 bits
            are there too.
        result: Type of ``%d``: ``b32``, say.
        operands: Types of those of ``%a``, ``%b``, ``%c`` that there are.
    """

    text: str
    result: str
    operands: tuple[str, ...]


def case_kernel(case: Case, name: str) -> str:
    """A kernel that applies the statements to each element: ``name(d, a, b, c, count)``."""
    letters = "abc"[: len(case.operands)]
    types = dict(zip(letters, case.operands, strict=True)) | {"d": case.result}
    parameters = [f".param .u64 {name}_{letter}" for letter in "d" + letters]
    lines = [f".visible .entry {name}(", ",\n".join([*parameters, f".param .u32 {name}_count"])]
    lines += [")", "{", ".reg .pred %end, %p, %q;", ".reg .b32 %i, %n, %k, %t<4>;"]
    lines += [".reg .b64 %at, %off;"]
    lines += [f".reg .b{8 * TYPE_BYTES[type_]} %{letter};" for letter, type_ in types.items()]
    lines += ["mov.u32 %i, %tid.x;", "mov.u32 %k, %ctaid.x;", "mov.u32 %n, %ntid.x;"]
    lines += ["mad.lo.s32 %i, %k, %n, %i;", f"ld.param.u32 %n, [{name}_count];"]
    lines += ["setp.ge.u32 %end, %i, %n;", "@%end bra FINISH;"]
    for letter in letters:
        lines += [
            *_address(name, letter, types),
            f"ld.global.b{_bits(types[letter])} %{letter}, [%at];",
        ]
    lines += [case.text, *_address(name, "d", types), f"st.global.b{_bits(case.result)} [%at], %d;"]
    return "\n".join([*lines, "FINISH:", "ret;", "}", ""])


def _bits(type_: str) -> int:
    return 8 * TYPE_BYTES[type_]


def _address(name: str, letter: str, types: dict[str, str]) -> list[str]:
    return [
        f"ld.param.u64 %at, [{name}_{letter}];",
        f"mul.wide.u32 %off, %i, {TYPE_BYTES[types[letter]]};",
        "add.s64 %at, %at, %off;",
    ]


def load_cases(cases: Sequence[Case]) -> list[LoadedKernel]:
    """All of them from one shared object: compiling takes longer than running."""
    names = [f"case_{number}" for number in range(len(cases))]
    kernels = [case_kernel(case, name) for case, name in zip(cases, names, strict=True)]
    loaded = load_kernels(HEAD + "\n".join(kernels))
    return [loaded[name] for name in names]


def apply(kernel: LoadedKernel, case: Case, *operands: np.ndarray) -> np.ndarray:
    """The bits of the results for operands of one length, given as bits."""
    count = len(operands[0])
    result = np.zeros(count, UNSIGNED[TYPE_BYTES[case.result]])
    given = [
        np.ascontiguousarray(operand).view(UNSIGNED[TYPE_BYTES[type_]])
        for operand, type_ in zip(operands, case.operands, strict=True)
    ]
    threads = 128
    kernel.launch(-(-count // threads), threads, 0, [result, *given, count])
    return result
