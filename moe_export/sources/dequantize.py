"""Exact float32 values of the two quantized formats that large MoE checkpoints come in.

Block FP8 (DeepSeek-V3): ``X`` in ``float8_e4m3fn``, and in ``X_scale_inv`` one scale for every
block of ``[128, 128]`` values; blocks at the right and bottom edge may be smaller.

MXFP4 (OCP Microscaling Formats 1.0; GPT-OSS): ``X_blocks`` holds 32 values of ``e2m1`` in 16 bytes,
the lower half of a byte first, and ``X_scales`` their power of two, biased by 127.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_export.errors import UsageError
from moe_export.sources import file_backed
from moe_export.sources.checkpoint import StoredTensor

FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
FP8_SCALE = "_scale_inv"
BLOCKS, SCALES = "_blocks", "_scales"
# What e2m1 can say, by its four bits: sign, two of exponent, one of mantissa.
_FP4_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_VALUES = (*_FP4_POSITIVE, *(-value for value in _FP4_POSITIVE))
FP4_BYTES_PER_BLOCK = 16
_MXFP4_DTYPES = ("U8", "F8_E8M0")
_FP8_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


@dataclass(frozen=True)
class DequantizedTensor:
    """A float32 tensor that is computed from stored ones each time it is read."""

    name: str
    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    def __getitem__(self, key: object) -> Tensor:
        """``tensor[...]``, which is how transformers reads a tensor when it needs it."""
        return self.compute()[key]  # type: ignore[index]


WeightSource = StoredTensor | DequantizedTensor


def dequantize_fp8(
    stored: Mapping[str, StoredTensor], block: Sequence[int] | None
) -> dict[str, WeightSource]:
    """Replace every FP8 tensor and its scales by their product; other tensors stay.

    Args:
        stored: The checkpoint.
        block: Rows and columns that share a scale; None for one scale per tensor.

    Raises:
        UsageError: a tensor has no scales, scales have no tensor, or the shapes do not fit.
    """
    found: dict[str, WeightSource] = {}
    for name, tensor in stored.items():
        if name.endswith(FP8_SCALE):
            weight = name.removesuffix(FP8_SCALE)
            if weight not in stored or stored[weight].dtype not in FP8_DTYPES:
                raise UsageError(f"{tensor.path}: {name} scales {weight}, which is no FP8 tensor")
        elif tensor.dtype == "F8_E4M3":
            found[name] = _fp8_tensor(tensor, stored.get(name + FP8_SCALE), block)
        elif tensor.dtype in FP8_DTYPES:
            raise UsageError(f"{tensor.path}: {name} is {tensor.dtype}; expected F8_E4M3")
        elif not name.endswith(".activation_scale"):  # activations stay float32
            found[name] = tensor
    return found


def _fp8_tensor(
    weight: StoredTensor, scale: StoredTensor | None, block: Sequence[int] | None
) -> DequantizedTensor:
    name, shape = weight.name, weight.shape
    if scale is None:
        raise UsageError(f"{weight.path}: {name} is {weight.dtype} and has no {name}{FP8_SCALE}")
    if scale.dtype not in _FP8_SCALE_DTYPES:
        raise UsageError(
            f"{scale.path}: {scale.name} is {scale.dtype}; expected one of "
            f"{', '.join(_FP8_SCALE_DTYPES)}"
        )
    if block is None:
        if math.prod(scale.shape) != 1:
            raise UsageError(
                f"{scale.path}: {scale.name} is {list(scale.shape)}; expected one scale, since the "
                "config's weight_block_size is null"
            )
        return DequantizedTensor(
            name, shape, lambda: weight.read().float() * _powers_or_values(scale).reshape(())
        )
    rows, columns = block
    if len(shape) < 2:
        raise UsageError(f"{weight.path}: {name} is {list(shape)}; expected at least two axes")
    grid = (*shape[:-2], math.ceil(shape[-2] / rows), math.ceil(shape[-1] / columns))
    if scale.shape != grid:
        raise UsageError(
            f"{scale.path}: {scale.name} is {list(scale.shape)}; expected {list(grid)}, one scale "
            f"for every {rows} x {columns} values of {name} {list(shape)}"
        )
    return DequantizedTensor(
        name, shape, lambda: scale_blocks(weight.read().float(), _powers_or_values(scale), block)
    )


def scale_blocks(values: Tensor, scales: Tensor, block: Sequence[int]) -> Tensor:
    """Multiply every block of ``values`` by its scale, in place.

    Args:
        values: ``[..., R, C]`` float32.
        scales: ``[..., ceil(R / rows), ceil(C / columns)]`` float32.
        block: ``rows`` and ``columns`` of a block.
    """
    rows, columns = block
    for index in range(scales.shape[-2]):
        wide = scales[..., index, :].repeat_interleave(columns, dim=-1)[..., : values.shape[-1]]
        values[..., index * rows : (index + 1) * rows, :] *= wide.unsqueeze(-2)
    return values


def _powers_or_values(scale: StoredTensor) -> Tensor:
    """Scales in float32; one byte is a biased power of two (``ue8m0``)."""
    tensor = scale.read()
    if tensor.dtype is torch.uint8:
        tensor = tensor.view(torch.float8_e8m0fnu)
    return tensor.float()


def dequantize_mxfp4(stored: Mapping[str, StoredTensor]) -> dict[str, WeightSource]:
    """Replace blocks and scales by their values, transposed as transformers keeps these weights.

    ``X_blocks`` ``[E, rows, G, 16]`` and ``X_scales`` ``[E, rows, G]`` become ``X``
    ``[E, 32 * G, rows]``; other tensors stay.

    Raises:
        UsageError: blocks have no scales, or the reverse, or the shapes do not fit.
    """
    found: dict[str, WeightSource] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALES) and tensor.dtype in _MXFP4_DTYPES:
            blocks = name.removesuffix(SCALES) + BLOCKS
            if blocks not in stored:
                raise UsageError(f"{tensor.path}: {name} has no {blocks}")
        elif name.endswith(BLOCKS):
            new = _mxfp4_tensor(tensor, stored.get(name.removesuffix(BLOCKS) + SCALES))
            found[new.name] = new
        else:
            found[name] = tensor
    return found


def _mxfp4_tensor(blocks: StoredTensor, scales: StoredTensor | None) -> DequantizedTensor:
    name = blocks.name.removesuffix(BLOCKS)
    if scales is None:
        raise UsageError(f"{blocks.path}: {blocks.name} has no {name}{SCALES}")
    if blocks.dtype != "U8" or len(blocks.shape) != 4 or blocks.shape[-1] != FP4_BYTES_PER_BLOCK:
        raise UsageError(
            f"{blocks.path}: {blocks.name} is {blocks.dtype} {list(blocks.shape)}; expected U8 "
            f"[experts, rows, groups, {FP4_BYTES_PER_BLOCK}], 32 values in each group"
        )
    if scales.dtype not in _MXFP4_DTYPES or scales.shape != blocks.shape[:-1]:
        raise UsageError(
            f"{scales.path}: {scales.name} is {scales.dtype} {list(scales.shape)}; expected U8 "
            f"{list(blocks.shape[:-1])}, one for each block of {blocks.name}"
        )
    experts, rows, groups, _ = blocks.shape

    def compute() -> Tensor:
        powers = _powers_or_values(scales)
        if powers.isnan().any():  # 255 says "not a number"
            raise UsageError(f"{scales.path}: {scales.name} holds 255, which is no scale")
        values = file_backed.empty((experts, groups * 32, rows), torch.float32)
        packed = blocks.read()
        for expert in range(experts):  # one at a time: all together may be larger than the memory
            values[expert] = unpack_fp4(packed[expert], powers[expert]).T
        return values

    return DequantizedTensor(name, (experts, groups * 32, rows), compute)


def unpack_fp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Values of MXFP4 blocks in float32, which holds all of them exactly.

    Args:
        blocks: ``[..., G, 16]`` uint8, two values per byte, the lower half first.
        scales: ``[..., G]`` float32 powers of two.

    Returns:
        ``[..., 32 * G]``.
    """
    pairs = torch.tensor([[FP4_VALUES[b & 15], FP4_VALUES[b >> 4]] for b in range(256)])
    values = pairs[blocks.int()].flatten(-2)  # [..., G, 32]
    return values.mul_(scales.unsqueeze(-1)).flatten(-2)
