"""Which variants of the grouped matrix product there are: form, tile and machine.

The names are those of matmul_tile.cpp. One list serves every target; SM80's also run on SM86 and
SM89, and as PTX on whatever comes later.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

TARGETS = (80, 90, 100, 103, 120, 121)
"""Compute capabilities that machine code is made for."""

NATIVE_FP8_SINCE = 89


@dataclass(frozen=True)
class Variant:
    """One kernel.

    Attributes:
        element: Type of the activations: fp32, fp16 or bf16.
        weight: As stored: the activations' type, int8, int4 or fp8.
        two_blocks: int4 with a scale per 32 columns; otherwise per 64 or 128.
        gated: Gate and up projection at once.
        rows: Of a tile.
    """

    element: str
    weight: str
    two_blocks: bool
    gated: bool
    rows: int

    @property
    def name(self) -> str:
        """``gated_matmul_bf16_int4b32_m16``, say."""
        kind = "gated_matmul" if self.gated else "matmul"
        stored = self.weight + ("b32" if self.two_blocks else "")
        return f"{kind}_{self.element}_{stored}_m{self.rows}"


def list_variants() -> list[Variant]:
    """Every variant, by name."""
    forms = [("fp32", "fp32", False, (16,))]  # for parity, not for speed
    for element in ("fp16", "bf16"):
        forms += [
            (element, element, False, (16, 64, 128)),
            (element, "int8", False, (16, 64, 128)),
            (element, "int4", False, (16, 64)),
            (element, "int4", True, (16, 64)),
            (element, "fp8", False, (16, 64)),
        ]
    return [
        Variant(element, weight, two_blocks, gated, rows)
        for (element, weight, two_blocks, tiles), gated in product(forms, (True, False))
        for rows in tiles
    ]


@dataclass(frozen=True)
class Schedule:
    """How a variant is cut on a target: outputs of a tile, warps, stages of its pipeline."""

    outputs: int
    warps: int
    stages: int


def schedule(variant: Variant, target: int) -> Schedule:
    """The schedule, chosen for registers and shared memory: no GPU has timed it."""
    if variant.element == "fp32":
        return Schedule(outputs=32, warps=4, stages=2)
    if variant.rows == 16:
        return Schedule(outputs=32 if variant.gated else 64, warps=4, stages=4)
    big = variant.rows == 128
    wide_products = target in (90, 100, 103)  # an instruction for many warps at once
    if variant.weight != variant.element:
        # Decoding fills registers; with wide products the decoded weights go through memory.
        narrow = variant.gated and not wide_products and not (big and target >= 120)
        many = big or (variant.weight == "int4" and variant.gated and wide_products)
        return Schedule(outputs=32 if narrow else 64, warps=8 if many else 4, stages=3)
    # SM100 keeps sums in memory of their own, and reads two tiles of them at once in the end.
    wide = big and wide_products and not (variant.gated and target >= 100)
    return Schedule(outputs=128 if wide else 64, warps=8 if big else 4, stages=3)
