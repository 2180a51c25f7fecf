"""Mutations of PTX, and what a check catches of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ptx.mutate import CheckError, main, run_mutations
from tests.ptx.mutations import Mutation, apply_mutation, list_mutations
from tests.ptx.one_statement import HEAD

REVERSE = f"""{HEAD}
.shared .align 4 .b8 memory[256];
.visible .entry reverse(.param .u64 reverse_out)
{{
.reg .b32 %r<6>;
.reg .b64 %rd<4>;
mov.u32 %r1, %tid.x;
shl.b32 %r2, %r1, 2;
mov.u32 %r3, memory;
add.u32 %r3, %r3, %r2;
st.shared.u32 [%r3], %r1;
bar.sync 0;
xor.b32 %r4, %r3, 252;
ld.shared.u32 %r5, [%r4];
ld.param.u64 %rd1, [reverse_out];
cvt.u64.u32 %rd2, %r2;
add.s64 %rd3, %rd1, %rd2;
st.global.u32 [%rd3], %r5;
add.s32 %r5, %r5, 7;
ret;
}}
"""

CHECK = """
import sys
import numpy as np
from tests.ptx.run import load_kernel

for seed in range(SEEDS):
    out = np.zeros(64, np.uint32)
    load_kernel(sys.argv[1]).launch(1, 64, 0, [out], seed)
    if out.tolist() != list(range(63, -1, -1)):
        sys.exit(1)
"""


@pytest.fixture
def files(tmp_path):
    kernel, check = tmp_path / "reverse.ptx", tmp_path / "check.py"
    kernel.write_text(REVERSE)
    check.write_text(CHECK.replace("SEEDS", "3"))
    return kernel, check


@pytest.fixture(autouse=True)
def package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def test_only_what_changes_nothing_survives(files):
    kernel, check = files
    report = run_mutations(kernel, [sys.executable, str(check)], count=14)
    assert len(report.caught) >= 8
    assert any(mutation.before == "bar.sync 0" for mutation in report.caught)
    assert [m.before for m in report.survivors] == ["add.s32 %r5, %r5, 7"]


def test_survivors_are_printed(files, capsys):
    kernel, check = files
    check.write_text("")
    assert main([str(kernel), "--count", "1", "--", sys.executable, str(check), "{}"]) == 1
    assert capsys.readouterr().out == (
        "reverse.ptx: 0 caught, 1 survived\n  line 15: bar.sync 0  ->  (left out)\n"
    )


def test_a_check_that_fails_anyway_is_an_error(files):
    kernel, check = files
    check.write_text("raise SystemExit(1)")
    with pytest.raises(CheckError, match=r"fails on reverse\.ptx as it is"):
        run_mutations(kernel, [sys.executable, str(check)])


def test_a_check_without_end_has_caught_its_mutation(files):
    kernel, check = files
    check.write_text(
        "import sys, time\nif 'bar.sync' not in open(sys.argv[1]).read(): time.sleep(60)"
    )
    report = run_mutations(kernel, [sys.executable, str(check)], count=1, timeout_s=2)
    assert len(report.caught) == 1


def test_mutations_are_drawn_by_seed_and_change_one_line():
    first = list_mutations(REVERSE, 20, seed=1)
    assert first == list_mutations(REVERSE, 20, seed=1)
    assert first != list_mutations(REVERSE, 20, seed=2)
    for mutation in first:
        changed = apply_mutation(REVERSE, mutation).split("\n")
        differs = [i for i, line in enumerate(REVERSE.split("\n"), 1) if line != changed[i - 1]]
        assert differs == [mutation.line]


def test_a_mutation_of_another_text_is_refused():
    with pytest.raises(ValueError, match="there is no 'trap' at line 3"):
        apply_mutation(REVERSE, Mutation(3, "trap", ""))
