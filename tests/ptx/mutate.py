"""What a check of a kernel catches: ``python -m tests.ptx.mutate KERNEL.ptx -- CHECK ...``.

CHECK is a command that is given the path of a PTX file, in place of ``{}`` or at its end, and exits
with 0 if all is well. It is run on the kernel, which must pass, and on copies with one statement
changed: those that pass are printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ptx.mutations import Mutation, apply_mutation, list_mutations


@dataclass(frozen=True)
class Report:
    """What became of the mutations.

    Attributes:
        caught: The check failed, or did not end in time.
        survivors: The check passed.
    """

    caught: tuple[Mutation, ...]
    survivors: tuple[Mutation, ...]


class CheckError(Exception):
    """A check that fails on the kernel as it is."""


def run_mutations(
    ptx: Path, check: Sequence[str], *, count: int = 40, seed: int = 0, timeout_s: float = 60
) -> Report:
    """Runs a check on mutations of a kernel.

    Args:
        ptx: The kernel.
        check: The command; ``{}`` in it stands for the path of the PTX to check.
        count: Mutations, at most.
        seed: Draws which.
        timeout_s: A check that takes longer has caught the mutation.

    Raises:
        CheckError: The check fails on the kernel as it is.
    """
    text = ptx.read_text()
    with tempfile.TemporaryDirectory() as folder:
        mutant = Path(folder, ptx.name)
        mutant.write_text(text)
        if not _passes(check, mutant, timeout_s):
            raise CheckError(f"the check fails on {ptx.name} as it is")
        caught: list[Mutation] = []
        survivors: list[Mutation] = []
        for mutation in list_mutations(text, count, seed):
            mutant.write_text(apply_mutation(text, mutation))
            (survivors if _passes(check, mutant, timeout_s) else caught).append(mutation)
    return Report(tuple(caught), tuple(survivors))


def _passes(check: Sequence[str], ptx: Path, timeout_s: float) -> bool:
    has_place = any("{}" in word for word in check)
    words = [word.replace("{}", str(ptx)) for word in check]
    command = words if has_place else [*words, str(ptx)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints survivors; 0 if there are none."""
    parser = argparse.ArgumentParser(
        description="Plant faults in PTX and see what a check catches."
    )
    parser.add_argument("ptx", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("check", nargs="+", metavar="CHECK")
    chosen = parser.parse_args(arguments)
    try:
        report = run_mutations(
            chosen.ptx,
            chosen.check,
            count=chosen.count,
            seed=chosen.seed,
            timeout_s=chosen.timeout,
        )
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.ptx.name}: {len(report.caught)} caught, {len(report.survivors)} survived")
    for mutation in report.survivors:
        print(f"  {mutation}")
    return 1 if report.survivors else 0


if __name__ == "__main__":
    sys.exit(main())
