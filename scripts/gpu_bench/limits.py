"""What a layer needs of a GPU, and how fast the GPU could be at best."""

from __future__ import annotations

from dataclasses import dataclass

from moe_bench.layers import Layer

from moe_export.gpu.layers import Form
from moe_export.ops.padded_rows import padded_rows_bytes

# Dense 16-bit operations of all tensor cores at the vendor's boost clock, per second, by a part of
# the device's name: the first that fits. Data sheets; half of what they state "with sparsity".
PEAK_OPERATIONS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12,
    "B300": 2250e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12,
    "RTX 5090": 209e12, "RTX PRO 6000": 504e12, "A6000": 155e12,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one call has to do.

    Attributes:
        bytes_read: Weights of the experts that were hit, tokens and results.
        operations: Multiplications and additions.
    """

    bytes_read: int
    operations: int

    def limit_us(self, bytes_per_second: float, operations_per_second: float | None) -> float:
        """Microseconds that no kernel can do without."""
        reading = self.bytes_read / bytes_per_second
        computing = self.operations / operations_per_second if operations_per_second else 0.0
        return 1e6 * max(reading, computing)


def count_work(layer: Layer, form: Form, tokens: int, hit: float) -> Work:
    """What ``tokens`` tokens need that reach ``hit`` different experts."""
    weights = form.weights
    expert_bytes = sum(
        padded_rows_bytes(
            weights.weight_type,
            rows,
            columns,
            block_size=weights.block_size,
            has_zero_point=weights.has_zero_point,
        )
        for rows, columns in (
            (layer.up_rows, layer.hidden),
            (layer.hidden, layer.intermediate),
        )
    )
    activations = 2 * tokens * layer.hidden * (4 if form.element_type == "fp32" else 2)
    return Work(round(hit * expert_bytes) + activations, layer.operations(tokens))


def peak_operations(device: str) -> float | None:
    """Of a device by its name; None for one that the table lacks."""
    return next((peak for name, peak in PEAK_OPERATIONS.items() if name in device), None)
