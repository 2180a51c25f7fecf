"""What is kept of a measurement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One contender on one kind of call.

    Attributes:
        layer, tokens, skewed: What was computed.
        contender, width, ours: By whom.
        seconds: Median over rounds of the median of a turn's calls.
        ratio: Of its time to ours, the median over rounds; 1 for ours, 0 where we took no part.
        error: Largest difference from float64, by the largest value.
        hit: Mean of the distinct experts of a call.
        bytes_read: Their weights and scales as this contender stores them.
        operations: Multiplications and additions.
        read_rate: Bytes per second, read just before each turn.
        peak_rate: Operations per second: float32 in registers, or PyTorch's dense bf16 product.
        limit_share: The larger of ``bytes_read / read_rate`` and ``operations / peak_rate``, over
            the time taken.
    """

    layer: str
    tokens: int
    skewed: bool
    contender: str
    width: str
    ours: bool
    seconds: float
    ratio: float
    error: float
    hit: float
    bytes_read: float
    operations: int
    read_rate: float
    peak_rate: float
    limit_share: float


@dataclass(frozen=True)
class Refusal:
    """A contender that does not compute a layer (0 tokens: at all), and why."""

    layer: str
    tokens: int
    contender: str
    width: str
    reason: str
