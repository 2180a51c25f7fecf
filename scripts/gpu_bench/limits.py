"""What a layer needs of a GPU, and how fast the GPU could be at best."""

from __future__ import annotations

from dataclasses import dataclass

from moe_bench.layers import Layer

from moe_export.gpu.c_api import KernelResources
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


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one of them share: CUDA's programming guide, by compute capability."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536


_BIG = Multiprocessor(threads=2048, blocks=32, shared_bytes=228 << 10)
MULTIPROCESSORS = {
    80: Multiprocessor(threads=2048, blocks=32, shared_bytes=164 << 10),
    86: Multiprocessor(threads=1536, blocks=16, shared_bytes=100 << 10),
    89: Multiprocessor(threads=1536, blocks=24, shared_bytes=100 << 10),
    90: _BIG,
    100: _BIG,
    103: _BIG,
    120: Multiprocessor(threads=1536, blocks=24, shared_bytes=100 << 10),
    121: Multiprocessor(threads=1536, blocks=24, shared_bytes=100 << 10),
}
_RESERVED_SHARED_BYTES = 1 << 10  # of each block, by the system
_REGISTERS_OF_WARP = 256  # they are given out in such parts


def occupancy(kernel: KernelResources, capability: int) -> float | None:
    """The share of a multiprocessor's threads that can run at once.

    None where the driver compiles the kernel, or the capability is not in the table.
    """
    machine = MULTIPROCESSORS.get(capability)
    if machine is None or not kernel.registers:
        return None
    warps = -(-kernel.threads // 32)
    warp_registers = -(-32 * kernel.registers // _REGISTERS_OF_WARP) * _REGISTERS_OF_WARP
    blocks = min(
        machine.blocks,
        machine.threads // kernel.threads,
        machine.shared_bytes // (kernel.shared_bytes + _RESERVED_SHARED_BYTES),
        machine.registers // (warps * warp_registers),
    )
    return blocks * kernel.threads / machine.threads
