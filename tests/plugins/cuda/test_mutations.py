"""Faults planted in the kernels' PTX, which the kernels' check has to see."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.plugins.cuda.check_kernel import run_check
from tests.plugins.cuda.on_cpu import LIBRARY, MISSING, PTX
from tests.ptx.mutate import run_mutations
from tests.ptx.mutations import apply_mutation, find_mutation

PRODUCT = "gated_matmul_bf16_int4_m16_sm80"


@dataclass(frozen=True)
class Fault:
    """A statement that begins with ``pattern`` is written otherwise, or left out.

    Attributes:
        pattern: As `find_mutation` takes it.
        replacement: What stands for the match; nothing leaves the statement out.
        entry: The kernel, of a file with several.
        nth: Which of the statements, from 0.
        sanitize: What sees it: ``thread`` for a barrier, as results are right by luck.
    """

    pattern: str
    replacement: str = ""
    entry: str = ""
    nth: int = 0
    sanitize: str = "none"

    def __str__(self) -> str:
        does = f"is-{self.replacement}" if self.replacement else "left-out"
        return f"{self.entry or 'product'}-{self.pattern}-{self.nth}-{does}".replace("\\", "")


ROW_FAULTS = (
    Fault(r"bar\.sync", entry="sort_few_pairs", sanitize="thread"),
    Fault(r"bar\.warp\.sync", entry="top_k_gating_bf16", sanitize="thread"),
    Fault(r"setp\.gt\.f32", "setp.lt.f32", "top_k_gating_bf16"),
    Fault(r"shfl\.sync\.up", "shfl.sync.down", "scan_counts"),
    Fault(r"min\.s32", "max.s32", "list_row_tiles"),
    Fault(r"st\.global", entry="copy_rows_bf16"),
)
PRODUCT_FAULTS = (
    Fault(r"bar\.sync", sanitize="thread", nth=1),  # before a stage of the pipeline is filled again
    Fault(r"mma\.sync", nth=1),
    Fault(r"cp\.async\.commit_group", nth=3),
    Fault(r"cp\.async\.wait_group 8", "cp.async.wait_group 9"),
    Fault(r"cp\.async\.wait_group 0"),
    Fault(r"ldmatrix(.*)\+6144", r"ldmatrix\1+6152"),
)


def plant(name, fault, folder):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    text = (PTX / f"{name}.ptx").read_text()
    place = {"entry": fault.entry, "nth": fault.nth}
    mutation = find_mutation(text, fault.pattern, fault.replacement, **place)
    mutant = folder / f"{name}.ptx"
    mutant.write_text(apply_mutation(text, mutation))
    return mutant


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=str(fault))
        for name, faults in (("kernels", ROW_FAULTS), (PRODUCT, PRODUCT_FAULTS))
        for fault in faults
    ],
)
def test_a_planted_fault_is_seen(name, fault, tmp_path):
    done = run_check(name, plant(name, fault, tmp_path), fault.sanitize)
    assert done.returncode != 0
    assert "PtxError" not in done.stderr
    assert "RuntimeError" not in done.stderr  # it was compiled
    if fault.sanitize == "thread":
        assert "data race" in done.stderr


@pytest.mark.parametrize("name", ["kernels", PRODUCT])
def test_kernels_as_they_are_pass_the_same_check(name):
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    done = run_check(name, PTX / f"{name}.ptx", "none")
    assert done.returncode == 0, done.stderr[-4000:]


_TWICE = "two barriers in a row, of which either will do"
_SYNCED = (
    "the barrier before lists of tiles: what it orders, the one that ended the sums has ordered"
)
# What passes although it is written otherwise: how often, and why that is no fault.
EXPLAINED = {
    ("kernels", 64): {
        "bar.sync 0  ->  (left out)": (5, f"2: {_TWICE}; 3: {_SYNCED}"),
        "@%p70 bra $L__BB0_51  ->  @!%p70 bra $L__BB0_51": (
            1,
            "within the case of groups without experts, which the contract excludes",
        ),
    },
    (PRODUCT, 40): {
        "cp.async.commit_group  ->  (left out)": (
            3,
            "the first stage's copies join its last one's group, and are waited for together",
        ),
        "st.shared.v2.b32 [%r419], {%r383, %r384}  ->  (left out)": (
            1,
            "of the results in float32, which are not written where fp32_output is 0: always",
        ),
        "shl.b32 %r420, %r9, 2  ->  shl.b32 %r420, %r9, 3": (1, "an address in the same results"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), EXPLAINED)
def test_every_survivor_of_a_whole_run_is_explained(name, count):
    """The statements are those of nvcc 13.0 and triton 3.9."""
    if not LIBRARY.exists():
        pytest.skip(MISSING)
    check = [sys.executable, "-m", "tests.plugins.cuda.check_kernel", name, "{}", "--sanitize"]
    report = run_mutations(
        PTX / f"{name}.ptx", [*check, "none", "thread", "address"], count=count, timeout_s=600
    )
    assert len(report.caught) + len(report.survivors) == count
    found = Counter(str(mutation).partition(": ")[2] for mutation in report.survivors)
    assert found == {text: times for text, (times, _) in EXPLAINED[name, count].items()}
