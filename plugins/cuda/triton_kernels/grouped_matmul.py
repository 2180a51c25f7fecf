"""The grouped matrix product of experts, in Triton: one kernel in many variants.

A block multiplies a tile of ``BM`` rows that belong to one expert with ``BN`` rows of that expert's
weight, in steps of 64 columns. Gated, it has rows of the gate and of the up projection at once and
puts the activation between; else an activation, which may be the identity, follows the product.

Weights are packed as ``weight_layout = cuda_v1`` (plugins/README.md): columns are filled with zeros
to whole steps, so that no step needs a mask. ``x`` is as wide.
"""

import triton
import triton.language as tl

# Values of the contract's enum `activation`, in its order.
SILU, GELU, GELU_TANH, RELU, RELU2 = (tl.constexpr(value) for value in range(5))

BK = tl.constexpr(64)
HALF = tl.constexpr(32)


@triton.jit
def least(a, b):
    """The smaller one; NaN if either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def greatest(a, b):
    """The larger one; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate(value, activation, alpha):
    """The contract's activation of a float32 tile; every one is 0 at 0."""
    if activation == SILU:
        value = value * tl.sigmoid(alpha * value)
    elif activation == GELU:
        value = 0.5 * value * (1.0 + tl.math.erf(value * 0.7071067811865476))
    elif activation == GELU_TANH:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * inner)
    elif activation == RELU:
        value = greatest(value, 0.0)
    elif activation == RELU2:
        value = greatest(value, 0.0)
        value = value * value
    return value


@triton.jit
def decode(codes, TO: tl.constexpr, WEIGHT: tl.constexpr, CONVERTS_FP8: tl.constexpr):
    """Weights as stored to ``TO``, without their scales: exactly."""
    if WEIGHT == "fp8" and CONVERTS_FP8:
        return codes.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(TO)
    if WEIGHT == "fp8":
        # The same exponent and mantissa at the other type's place, and its bias made up for.
        wide = codes.to(tl.int16)  # extends the sign
        sign = wide & -32768
        if TO == tl.bfloat16:
            return (sign | ((wide & 127) << 4)).to(TO, bitcast=True) * 2.0**120
        return (sign | ((wide & 127) << 7)).to(TO, bitcast=True) * 2.0**8
    return codes.to(TO)


@triton.jit
def decode_int4(codes, zero, TO: tl.constexpr):
    """Codes 0 .. 15 minus ``zero``, exactly: a code is the low bits of 128 or 1024."""
    if TO == tl.bfloat16:
        return (codes.to(tl.int16) | 0x4300).to(TO, bitcast=True) - (
            zero.to(tl.float32) + 128.0
        ).to(TO)
    return (codes.to(tl.int16) | 0x6400).to(TO, bitcast=True) - (zero.to(tl.float32) + 1024.0).to(
        TO
    )


@triton.jit
def add_int4(
    sums,
    low,
    high,
    codes,
    scales,
    zeros,
    column,
    n,
    mask,
    block,
    use_zeros,
    TWO_BLOCKS: tl.constexpr,
):
    """``sums`` plus 64 columns' products: bytes hold columns 0 .. 31 below and 32 .. 63 above."""
    at = column // block * n
    scale = tl.load(scales + at, mask=mask, other=0.0)[None, :]
    zero = tl.load(zeros + at, mask=mask & (use_zeros != 0), other=8)[None, :]
    part = tl.dot(low, decode_int4(codes & 15, zero, low.dtype))
    if TWO_BLOCKS:
        sums += part * scale
        scale = tl.load(scales + at + n, mask=mask, other=0.0)[None, :]
        zero = tl.load(zeros + at + n, mask=mask & (use_zeros != 0), other=8)[None, :]
        part = tl.dot(high, decode_int4(codes >> 4, zero, high.dtype))
    else:
        part = tl.dot(high, decode_int4(codes >> 4, zero, high.dtype), part)
    return sums + part * scale


@triton.jit
def grouped_matmul(
    x,
    weight,
    scales,
    zeros,
    bias,
    row_weights,
    y,
    y_fp32,
    pairs,
    ends,
    tiles,
    weight_stride,
    scale_stride,
    zero_stride,
    x_stride,
    y_stride,
    n,
    columns,
    y_width,
    block,
    top_k,
    activation,
    use_zeros,
    use_bias,
    use_row_weights,
    fp32_output,
    limits_output,
    alpha,
    limit,
    up_offset,
    GATED: tl.constexpr,
    WEIGHT: tl.constexpr,
    TWO_BLOCKS: tl.constexpr,
    CONVERTS_FP8: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """y[row] = activation(weight[expert of row] · x[source of row] + bias), or its gated form.

    Args (E experts, R = n or, gated, 2 n rows per weight, M sorted rows):
        x: [.., x_stride] rows; row r reads row ``pairs[r] // top_k``, or r if ``top_k`` is 0.
        weight, scales, zeros: first codes, float32 scales and zero points; an expert's lie
            ``weight_stride`` elements, ``scale_stride`` floats and ``zero_stride`` bytes apart.
        bias: [E, R] float32, if ``use_bias``.
        row_weights: [P] float32 per pair, factors on x, if ``use_row_weights``.
        y, y_fp32: [M, y_stride], the former or, if ``fp32_output``, the latter is written; columns
            from n to ``y_width`` become zero.
        ends, tiles: [E], and a `TileList` (expert_sort_call.h).
        columns: of x and weights, a multiple of 64.
        block: columns per scale of int4, TWO_BLOCKS if 32.
        limit: infinity for none; ``limits_output``: on the activation's output.
    """
    num_tiles = tl.load(tiles)
    blocks_n = tl.cdiv(y_width, BN)
    pid = tl.program_id(0)
    if pid >= num_tiles * blocks_n:
        return
    # GROUP tiles of rows share the weights that the second-level cache holds.
    group = pid // (GROUP * blocks_n)
    group_tiles = tl.minimum(num_tiles - group * GROUP, GROUP)
    within = pid % (GROUP * blocks_n)
    tile = group * GROUP + within % group_tiles
    expert = tl.load(tiles + 4 + 2 * tile)
    rows = tl.load(tiles + 5 + 2 * tile) + tl.arange(0, BM)
    row_mask = rows < tl.load(ends + expert)
    pair = tl.load(pairs + rows, mask=row_mask & (top_k > 0), other=0)
    sources = tl.where(top_k > 0, pair // tl.maximum(top_k, 1), rows)

    outputs = within // group_tiles * BN + tl.arange(0, BN)
    output_mask = outputs < n
    expert = expert.to(tl.int64)
    scales += expert * scale_stride + outputs
    zeros += expert * zero_stride + outputs
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    up_sums = tl.zeros((BM, BN), dtype=tl.float32)
    if WEIGHT == "int4":
        half = tl.arange(0, HALF)
        x_at = x + sources.to(tl.int64)[:, None] * x_stride + half[None, :]
        at = weight + expert * weight_stride + outputs[None, :] * (columns // 2) + half[:, None]
        for column in range(0, columns, BK):
            low = tl.load(x_at, mask=row_mask[:, None], other=0.0)
            high = tl.load(x_at + HALF, mask=row_mask[:, None], other=0.0)
            codes = tl.load(at, mask=output_mask[None, :], other=0)
            if GATED:
                up_codes = tl.load(at + n * (columns // 2), mask=output_mask[None, :], other=0)
                sums = add_int4(
                    sums,
                    low,
                    high,
                    codes,
                    scales,
                    zeros,
                    column,
                    2 * n,
                    output_mask,
                    block,
                    use_zeros,
                    TWO_BLOCKS,
                )
                up_sums = add_int4(
                    up_sums,
                    low,
                    high,
                    up_codes,
                    scales + n,
                    zeros + n,
                    column,
                    2 * n,
                    output_mask,
                    block,
                    use_zeros,
                    TWO_BLOCKS,
                )
            else:
                sums = add_int4(
                    sums,
                    low,
                    high,
                    codes,
                    scales,
                    zeros,
                    column,
                    n,
                    output_mask,
                    block,
                    use_zeros,
                    TWO_BLOCKS,
                )
            x_at += BK
            at += HALF
    else:
        inner = tl.arange(0, BK)
        x_at = x + sources.to(tl.int64)[:, None] * x_stride + inner[None, :]
        at = weight + expert * weight_stride + outputs[None, :] * columns + inner[:, None]
        for _ in range(0, columns, BK):
            values = tl.load(x_at, mask=row_mask[:, None], other=0.0)
            codes = tl.load(at, mask=output_mask[None, :], other=0)
            if GATED:
                up_codes = tl.load(at + n * columns, mask=output_mask[None, :], other=0)
                up_sums = tl.dot(
                    values,
                    decode(up_codes, values.dtype, WEIGHT, CONVERTS_FP8),
                    up_sums,
                    input_precision="ieee",
                )
            sums = tl.dot(
                values,
                decode(codes, values.dtype, WEIGHT, CONVERTS_FP8),
                sums,
                input_precision="ieee",
            )
            x_at += BK
            at += BK
        if WEIGHT == "int8" or WEIGHT == "fp8":
            sums *= tl.load(scales, mask=output_mask, other=0.0)[None, :]
            if GATED:
                up_sums *= tl.load(scales + n, mask=output_mask, other=0.0)[None, :]

    factors = tl.load(row_weights + pair, mask=row_mask & (use_row_weights != 0), other=1.0)[
        :, None
    ]
    rows_per_expert = 2 * n if GATED else n
    bias += expert * rows_per_expert + outputs
    has_bias = output_mask & (use_bias != 0)
    sums = sums * factors + tl.load(bias, mask=has_bias, other=0.0)[None, :]
    if GATED:
        up_sums = up_sums * factors + tl.load(bias + n, mask=has_bias, other=0.0)[None, :]
        sums = tl.where(limits_output != 0, sums, least(sums, limit))
        sums = activate(sums, activation, alpha)
        sums = tl.where(limits_output != 0, least(sums, limit), sums)
        up_sums = least(greatest(up_sums, -limit), limit)
        sums = sums * tl.where(output_mask[None, :], up_sums + up_offset, 0.0)
    else:
        sums = activate(sums, activation, alpha)
    to = rows.to(tl.int64)[:, None] * y_stride + outputs[None, :]
    mask = row_mask[:, None] & (outputs < y_width)[None, :]
    tl.store(y + to, sums.to(y.dtype.element_ty), mask=mask & (fp32_output == 0))
    tl.store(y_fp32 + to, sums, mask=mask & (fp32_output != 0))
