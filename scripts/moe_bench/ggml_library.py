"""The functions of ggml that a layer takes, called in the shared libraries of ``ggml-python``.

Its own wrappers crash when they allocate tensors, so declarations stand here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

F32, Q4_0, Q8_0, I32, BF16 = 0, 2, 8, 26, 30

_POINTER, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


# What ggml prints while it repacks goes nowhere.
_LOG = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)
_SILENT = _LOG(lambda level, text, data: None)


class _ContextSettings(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


# Result and arguments; contexts, tensors, graphs, buffers and backends are pointers.
_BASE: dict[str, tuple[Any, Sequence[Any]]] = {
    "ggml_init": (_POINTER, [_ContextSettings]),
    "ggml_log_set": (None, [_LOG, _POINTER]),
    "ggml_free": (None, [_POINTER]),
    "ggml_version": (ctypes.c_char_p, []),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _LONG, _LONG]),
    "ggml_new_tensor_3d": (_POINTER, [_POINTER, _INT, _LONG, _LONG, _LONG]),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_quantize_chunk": (_SIZE, [_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER]),
    "ggml_mul_mat_id": (_POINTER, [_POINTER] * 4),
    "ggml_swiglu_split": (_POINTER, [_POINTER] * 3),
    "ggml_relu": (_POINTER, [_POINTER] * 2),
    "ggml_mul": (_POINTER, [_POINTER] * 3),
    "ggml_add": (_POINTER, [_POINTER] * 3),
    "ggml_cont": (_POINTER, [_POINTER] * 2),
    "ggml_view_2d": (_POINTER, [_POINTER, _POINTER, _LONG, _LONG, _SIZE, _SIZE]),
    "ggml_set_output": (None, [_POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_gallocr_new": (_POINTER, [_POINTER]),
    "ggml_gallocr_alloc_graph": (ctypes.c_bool, [_POINTER, _POINTER]),
    "ggml_gallocr_free": (None, [_POINTER]),
    "ggml_backend_cpu_buffer_type": (_POINTER, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
    "ggml_backend_free": (None, [_POINTER]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [_POINTER]),
    "ggml_backend_get_device": (_POINTER, [_POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
}
_CPU: dict[str, tuple[Any, Sequence[Any]]] = {
    "ggml_backend_cpu_init": (_POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [_POINTER, _INT]),
    "ggml_backend_cpu_reg": (_POINTER, []),
}


class Ggml:
    """ggml's functions by their names in C."""

    def __init__(self) -> None:
        spec = find_spec("ggml")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("ggml is not installed: pip install ggml-python")
        folder = Path(spec.origin).parent / "lib"
        for name, functions in (("base", _BASE), ("cpu", _CPU)):
            library = ctypes.CDLL(str(folder / f"libggml-{name}.so"))
            for function, (result, arguments) in functions.items():
                found = getattr(library, function)
                found.restype, found.argtypes = result, arguments
                setattr(self, function.removeprefix("ggml_"), found)
        self.log_set(_SILENT, None)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the library has
        raise AttributeError(f"ggml_{name} is not declared in {__file__}")

    def new_context(self, tensors: int) -> int:
        """A context for the descriptions of tensors, which are allocated later."""
        # A tensor's description takes less than 512 bytes, a graph of the default size 80 kB.
        return int(self.init(_ContextSettings(tensors * 512 + (1 << 18), None, True)))

    def repack_buffers(self) -> int | None:
        """The kind of buffer that rearranges weights for this CPU, if the build has it."""
        found = self.backend_reg_get_proc_address(
            self.backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
        )
        if not found:
            return None
        backend = self.backend_cpu_init()
        signature = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)
        kinds = signature(found)(self.backend_get_device(backend))
        self.backend_free(backend)
        place = 0
        while kinds[place]:
            if self.backend_buft_name(kinds[place]) == b"CPU_REPACK":
                return int(kinds[place])
            place += 1
        return None


@cache
def load_ggml() -> Ggml:
    """The libraries, loaded once."""
    return Ggml()
