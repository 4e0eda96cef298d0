"""Tiles of products of two activations; :mod:`..matmul` has the formula."""

import triton
import triton.language as tl

from .arithmetic import placed, requantized, signed

__all__ = ["matmul"]


@triton.jit
def matmul(
    a,
    b,
    y,
    rows,
    columns,
    depth,
    a_batch,
    a_row,
    b_batch,
    b_column,
    a_zero,
    b_zero,
    low,
    high,
    zero_point,
    scale,
    A_UNSIGNED: tl.constexpr,
    B_UNSIGNED: tl.constexpr,
    A_ZERO: tl.constexpr,
    B_ZERO: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one matrix of the batch, which is the second axis of the grid.

    Args:
        a: ``[batch, rows, depth]``; b: ``[batch, columns, depth]``; y: ``[batch, rows, columns]``.
        a_batch, a_row, b_batch, b_column: strides, in values; that along ``depth`` is 1.
        a_zero, b_zero: zero points of the operands as int8.
    """
    tile_m, tile_n = placed(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N))
    matrix = tl.program_id(1).to(tl.int64)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    left = a + matrix * a_batch + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * a_row
    right = b + matrix * b_batch + tl.minimum(n, columns - 1).to(tl.int64)[None, :] * b_column
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    over_rows = tl.zeros((BLOCK_M,), dtype=tl.int32)
    over_columns = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for begin in range(0, depth, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        inside = k < depth
        # Beyond the edge both are 0 as int8.
        p = tl.load(left + k[None, :], mask=inside[None, :], other=128 * A_UNSIGNED)
        q = tl.load(right + k[:, None], mask=inside[:, None], other=128 * B_UNSIGNED)
        p, q = signed(p, A_UNSIGNED), signed(q, B_UNSIGNED)
        acc = tl.dot(p, q, acc, out_dtype=tl.int32)
        if B_ZERO:
            over_rows += tl.sum(p.to(tl.int32), axis=1)
        if A_ZERO:
            over_columns += tl.sum(q.to(tl.int32), axis=0)
    if B_ZERO:
        acc -= (over_rows * b_zero - depth * a_zero * b_zero)[:, None]
    if A_ZERO:
        acc -= (over_columns * a_zero)[None, :]
    total = acc.to(tl.float32) * scale
    within = (m < rows)[:, None] & (n < columns)[None, :]
    place = (matrix * rows + m)[:, None] * columns + n[None, :]
    if FLOAT:
        tl.store(y + place, total, mask=within)
    else:
        stored = requantized(total, low, high, zero_point)
        tl.store(y + place, stored.to(y.dtype.element_ty), mask=within)
