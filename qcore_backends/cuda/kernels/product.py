"""Tiles of the product of activations and a constant weight; :mod:`..product` has the formula."""

import triton
import triton.language as tl

from .arithmetic import placed, requantized, signed

__all__ = ["product"]


@triton.jit
def product(
    x,
    w,
    y,
    correction,
    scale,
    bias,
    row_scale,
    other,
    rows,
    columns,
    depth,
    size,
    groups,
    low,
    high,
    zero_point,
    inverse,
    other_zero,
    other_scale,
    UNSIGNED: tl.constexpr,
    PACKED: tl.constexpr,
    GROUPED: tl.constexpr,
    CORRECTED: tl.constexpr,
    BIASED: tl.constexpr,
    TOKENS: tl.constexpr,
    ADDED: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output.

    Args:
        x: 8-bit ``[rows, depth]``; w: int8 ``[columns, depth]``, or two to a byte ``[columns,
            depth / 2]``; y: ``[rows, columns]``.
        correction: int32; scale: float32; both ``[columns]`` or ``[groups, columns]``.
        bias: float32 ``[columns]``; row_scale: float32 ``[rows]``; other: like ``y``.
        size: columns of x in a group; the whole depth if there is one.
        inverse: what the sum over groups is multiplied by before it is rounded.
    """
    tile_m, tile_n = placed(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N))
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < columns
    # Beyond the edges the last row is read once more: no mask is needed along it. Offsets of
    # large tensors do not fit 32 bits.
    row = tl.minimum(m, rows - 1).to(tl.int64)
    column = tl.minimum(n, columns - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(groups):
        if GROUPED:
            acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for begin in range(0, size, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            a = tl.load(
                x + (row[:, None] * depth + group * size + k[None, :]),
                mask=k[None, :] < size,
                other=0,
            )
            if PACKED:
                pair = begin // 2 + tl.arange(0, BLOCK_K // 2)
                byte = tl.load(
                    w + (column[:, None] * (depth // 2) + group * (size // 2) + pair[None, :]),
                    mask=pair[None, :] < size // 2,
                    other=0,
                )
                first = (byte << 4).to(tl.int8, bitcast=True) >> 4
                second = byte.to(tl.int8, bitcast=True) >> 4
                b = tl.trans(tl.interleave(first, second))
            else:
                b = tl.load(
                    w + (column[None, :] * depth + group * size + k[:, None]),
                    mask=k[:, None] < size,
                    other=0,
                )
            acc = tl.dot(signed(a, UNSIGNED), b, acc, out_dtype=tl.int32)
        if GROUPED:
            if CORRECTED:
                acc += tl.load(correction + group * columns + n, mask=in_n, other=0)[None, :]
            step = tl.load(scale + group * columns + n, mask=in_n, other=0.0)
            total += acc.to(tl.float32) * step[None, :]
    if not GROUPED:
        if CORRECTED:
            acc += tl.load(correction + n, mask=in_n, other=0)[None, :]
        step = tl.load(scale + n, mask=in_n, other=0.0)
        total = acc.to(tl.float32) * step[None, :]
    if TOKENS:
        total = total * tl.load(row_scale + m, mask=in_m, other=0.0)[:, None]
    if BIASED:
        total = total + tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    inside = in_m[:, None] & in_n[None, :]
    place = row[:, None] * columns + n[None, :]
    if ADDED:
        residual = tl.load(other + place, mask=inside, other=0).to(tl.int32) - other_zero
        total = total + residual.to(tl.float32) * other_scale
    if FLOAT:
        tl.store(y + place, total, mask=inside)
    else:
        if GROUPED:
            total = total * inverse
        stored = requantized(total, low, high, zero_point)
        tl.store(y + place, stored.to(y.dtype.element_ty), mask=inside)
