"""Whether a kernel's PTX computes what it should.

    python -m tests.plugins.cuda.check_kernel NAME PTX [--sanitize SANITIZER ...]

NAME is a file of the build: ``gated_matmul_bf16_int4_m16_sm80`` or ``kernels``, say. PTX is run in
its place; of ``kernels``, whatever differs from the build's, or all if nothing does. Once without a
sanitizer, then with each of those asked for: ``address`` sees what leaves a buffer, ``thread`` the
barriers that are missing, on small layers. Ends with 0 if all is well: what `tests.ptx.mutate` asks
for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moe_export.gpu.layers import Form, UploadedLayer, list_forms, make_layer
from moe_export.ops import reference
from moe_export.ops.spec import GroupedExperts
from moe_export.tolerances import GPU_TOLERANCES
from tests.plugins.cuda.check_rows import check_entry
from tests.plugins.cuda.on_cpu import PTX, SANITIZE, HostDevice, LibraryOnCpu
from tests.plugins.cuda.row_kernels import RowKernels
from tests.ptx.build import build
from tests.ptx.entries import changed_entries, entry_lines, keep_entries
from tests.ptx.run import KernelError

SANITIZERS = ("none", "address", "thread")
_GATED = GroupedExperts(
    num_experts=5,
    hidden_size=200,
    intermediate_size=75,
    alpha=1.702,
    limit=2.0,
    up_offset=1.0,
    has_bias=True,
    first_expert=2,
)
_LAYERS = (
    _GATED,
    replace(_GATED, activation="gelu", alpha=1.0, limit_on="output", weight_on="input"),
    GroupedExperts(num_experts=3, hidden_size=72, intermediate_size=130, activation="gelu_tanh"),
    replace(_GATED, hidden_size=72, activation="relu", alpha=1.0, limit=0.0, first_expert=0),
    GroupedExperts(num_experts=4, hidden_size=320, intermediate_size=64, activation="identity"),
    GroupedExperts(
        num_experts=4, hidden_size=130, intermediate_size=64, gated=False, activation="relu2"
    ),
)
# Steps enough for a pipeline to come around, and few threads: each costs ThreadSanitizer 1 ms.
_SHORT = replace(_GATED, num_experts=2, intermediate_size=40)


def run_check(
    name: str, ptx: Path, sanitize: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The check in a process of its own, which a sanitizer's library is loaded into."""
    command = [sys.executable, "-m", "tests.plugins.cuda.check_kernel", name, str(ptx), "--only"]
    if sanitize != "none":
        library = {"address": "libasan.so", "thread": "libtsan.so"}[sanitize]
        found = subprocess.run(
            ["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        )
        variables |= {"MOE_EXPORT_TEST_SANITIZE": sanitize}
        options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66 halt_on_error=1"}
        if name != "kernels":  # their launches have processes of their own
            variables |= options
            # ThreadSanitizer's shadow memory needs addresses that are not drawn.
            command = ["setarch", "-R", "env", f"LD_PRELOAD={found.stdout.strip()}", *command]
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a kernel's PTX.")
    parser.add_argument("name")
    parser.add_argument("ptx", type=Path)
    parser.add_argument("--sanitize", nargs="+", default=["none"], choices=SANITIZERS)
    parser.add_argument("--only", action="store_true", help="in this process, as it was built")
    chosen = parser.parse_args(arguments)
    if chosen.only:
        check = _check_rows if chosen.name == "kernels" else _check_product
        return 0 if check(chosen.name, chosen.ptx.read_text()) else 1
    for sanitize in chosen.sanitize:
        done = run_check(chosen.name, chosen.ptx, sanitize)
        if done.returncode:
            print(f"{sanitize}: {(done.stdout + done.stderr)[-4000:]}", file=sys.stderr)
            return 1
    return 0


def _check_rows(name: str, text: str) -> bool:
    """The kernels of CUDA C++, each by itself."""
    entries = changed_entries((PTX / f"{name}.ptx").read_text(), text)
    if not entries:
        # Threads race alike whatever the type, and ThreadSanitizer takes a millisecond for each.
        seldom = ("_fp32", "_fp16") if SANITIZE == "thread" else ()
        entries = [entry for entry in entry_lines(text) if not entry.endswith(seldom)]
    kernels = RowKernels(keep_entries(text, entries), SANITIZE)
    for entry in entries:
        try:
            check_entry(kernels, entry, is_short=SANITIZE == "thread")
        except (AssertionError, KernelError) as error:
            print(f"{entry}: {error}", file=sys.stderr)
            return False
    return True


def _check_product(name: str, text: str) -> bool:
    """Layers of the form and tile that the kernel is of."""
    stem, _, capability = name.rpartition("_sm")
    _, element, stored, tile = stem.removeprefix("gated_").split("_")
    with tempfile.TemporaryDirectory() as folder:
        compiled = build(text, sanitize=SANITIZE, name=f"{name}.ptx")
        (Path(folder) / f"{name}.so").symlink_to(compiled)
        library = LibraryOnCpu(int(capability), Path(folder))
        forms = [form for form in list_forms() if _stored(form) == (element, stored)]
        tile_rows = int(tile.removeprefix("m"))
        library.need_form(element, forms[0].weights, tile_rows)
        if SANITIZE == "thread":
            return all(_check_layer(library, forms[0], _SHORT, tile_rows, seed) for seed in (2, 3))
        return all(
            _check_layer(library, form, attributes, tile_rows, tokens)
            for i, form in enumerate(forms)
            for attributes in (_LAYERS[:1] if SANITIZE or i else _LAYERS)
            for tokens in (3, 42)
        )


def _stored(form: Form) -> tuple[str, str]:
    halves = "b32" if form.weights.block_size == 32 else ""
    return form.element_type, form.weights.weight_type + halves


def _check_layer(
    library: LibraryOnCpu, form: Form, attributes: GroupedExperts, tile: int, tokens: int
) -> bool:
    rng = np.random.default_rng(tokens)
    first, top_k = attributes.first_expert, min(3, attributes.num_experts)
    ids = rng.integers(first - 1, first + attributes.num_experts, (tokens, top_k)).astype(np.int64)
    layer = make_layer(form, attributes, ids, rng)
    device = HostDevice()
    os.environ["MOE_EXPORT_TEST_SEED"] = str(tokens)  # another order of threads
    uploaded = UploadedLayer(layer, library, device)
    uploaded.run(tile)
    expected = reference.grouped_experts(attributes=layer.attributes, **layer.inputs)
    error = np.abs(uploaded.output() - expected).max() / np.abs(expected).max()
    return bool(error <= GPU_TOLERANCES[form.element_type])


if __name__ == "__main__":
    sys.exit(main())
