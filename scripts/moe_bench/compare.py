"""Who is compared with whom: the best peer of the same width that is as exact as ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_bench.results import Result

# A peer's error over ours, up to which its weights and arithmetic are taken for equal.
ERROR_FACTOR = 1.5
# Errors below this are the order of float32 sums, whoever computes them.
ROUNDING = 1e-5

LEGEND = f"""\
peer / ours  its time over ours, the median over rounds; above 1 ours is faster
of limit     max(bytes of the hit experts / read bandwidth, operations / peak) over the time;
             the peak of fp32 is multiply-adds in registers, of other widths PyTorch's dense bf16
             product, which int8 arithmetic can exceed
error        largest difference from float64, by the largest value
*            the best peer: the fastest of the same width whose error is no larger than
             {ERROR_FACTOR} times ours, or below {ROUNDING:.0e}"""


@dataclass(frozen=True)
class Comparison:
    """One of our results beside the best peer's, if there is any."""

    ours: Result
    peer: Result | None

    @property
    def ratio(self) -> float:
        """The best peer's time over ours; 0 without one."""
        return self.peer.ratio if self.peer else 0


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Each of our results with the best peer's on the same case, in the order of the results."""
    return [Comparison(own, best_peer(own, results)) for own in results if own.ours]


def best_peer(own: Result, results: Sequence[Result]) -> Result | None:
    """The fastest other contender of the same case and width that is about as exact."""
    allowed = max(ERROR_FACTOR * own.error, ROUNDING)
    peers = [
        other
        for other in results
        if not other.ours
        and other.width == own.width
        and case_of(other) == case_of(own)
        and other.error <= allowed
    ]
    return min(peers, key=lambda peer: peer.ratio, default=None)


def case_of(result: Result) -> tuple[str, int, bool]:
    """Layer, tokens, and whether the routing is skewed."""
    return result.layer, result.tokens, result.skewed
