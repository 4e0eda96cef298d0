"""Products of float32 activations with integer weights, which become float32 in registers."""

import triton
import triton.language as tl

__all__ = ["all_weights", "few_rows", "one_row"]


@triton.jit
def weights(
    q,
    scale,
    zero,
    n,
    k,
    columns,
    depth,
    SIZE: tl.constexpr,
    ONE: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The float32 weights of rows ``n`` and the ``BLOCK_K`` columns from ``k``, ``[BLOCK_N,
    BLOCK_K]``; beyond the last column any number.

    Args:
        scale, zero: ``[columns, depth / SIZE]``.
        ONE: there is one group.
    """
    row = tl.minimum(n, columns - 1).to(tl.int64)[:, None]
    at = k + tl.arange(0, BLOCK_K)[None, :]
    if PACKED:
        pair = k // 2 + tl.arange(0, BLOCK_K // 2)[None, :]
        byte = tl.load(q + row * (depth // 2) + pair, mask=pair < depth // 2, other=0)
        if SIGNED:
            first = (byte << 4).to(tl.int8, bitcast=True) >> 4
            second = byte.to(tl.int8, bitcast=True) >> 4
        else:
            first, second = byte & 15, byte >> 4
        integer = tl.interleave(first, second).to(tl.int32)
    else:
        integer = tl.load(q + row * depth + at, mask=at < depth, other=0).to(tl.int32)
    groups = depth // SIZE
    if ONE or SIZE % BLOCK_K == 0:
        # One scale a row.
        place = row * groups + k // SIZE
        if AFFINE:
            integer -= tl.load(zero + place)
        value = integer.to(tl.float32) * tl.load(scale + place)
    elif BLOCK_K % SIZE == 0:
        # Whole groups: each scale is read once, not once for each weight.
        group = k // SIZE + tl.arange(0, BLOCK_K // SIZE)[None, :]
        integer = tl.reshape(integer, (BLOCK_N, BLOCK_K // SIZE, SIZE))
        if AFFINE:
            integer -= tl.load(zero + row * groups + group, mask=group < groups, other=0)[
                :, :, None
            ]
        step = tl.load(scale + row * groups + group, mask=group < groups, other=0.0)
        value = tl.reshape(integer.to(tl.float32) * step[:, :, None], (BLOCK_N, BLOCK_K))
    else:
        place = row * groups + at // SIZE
        if AFFINE:
            integer -= tl.load(zero + place, mask=at < depth, other=0)
        value = integer.to(tl.float32) * tl.load(scale + place, mask=at < depth, other=0.0)
    return value


@triton.jit
def one_row(
    x,
    q,
    scale,
    zero,
    bias,
    y,
    columns,
    depth,
    SIZE: tl.constexpr,
    ONE: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    AFFINE: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``BLOCK_N`` outputs of one row: products add up value by value, across threads once.

    Here alone multiply-adds are fused: rounding less is within the bound.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    # Without a product of tiles only a loop that asks for it loads ahead.
    for begin in tl.range(0, depth, BLOCK_K, num_stages=4):
        w = weights(
            q, scale, zero, n, begin, columns, depth,
            SIZE, ONE, PACKED, SIGNED, AFFINE, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        k = begin + tl.arange(0, BLOCK_K)
        acc += w * tl.load(x + row * depth + k, mask=k < depth, other=0.0)[None, :]
    total = tl.sum(acc, axis=1)
    if BIASED:
        total += tl.load(bias + n, mask=n < columns, other=0.0)
    tl.store(y + row * columns + n, total, mask=n < columns)


@triton.jit
def few_rows(
    x,
    q,
    scale,
    zero,
    bias,
    y,
    rows,
    columns,
    depth,
    SIZE: tl.constexpr,
    ONE: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    AFFINE: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``BLOCK_N`` outputs of up to ``BLOCK_M`` rows."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(0, depth, BLOCK_K):
        w = weights(
            q, scale, zero, n, begin, columns, depth,
            SIZE, ONE, PACKED, SIGNED, AFFINE, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        k = begin + tl.arange(0, BLOCK_K)
        inside = (m < rows)[:, None] & (k < depth)[None, :]
        a = tl.load(x + m[:, None] * depth + k[None, :], mask=inside, other=0.0)
        # Tensor cores would round both to 10 bits.
        acc = tl.dot(a, tl.trans(w), acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias + n, mask=n < columns, other=0.0)[None, :]
    within = (m < rows)[:, None] & (n < columns)[None, :]
    tl.store(y + m[:, None] * columns + n[None, :], acc, mask=within)


@triton.jit
def all_weights(
    q,
    scale,
    zero,
    w,
    columns,
    depth,
    SIZE: tl.constexpr,
    ONE: tl.constexpr,
    PACKED: tl.constexpr,
    SIGNED: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All weights, float32 ``[columns, depth]``."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.program_id(1) * BLOCK_K
    value = weights(
        q, scale, zero, n, begin, columns, depth,
        SIZE, ONE, PACKED, SIGNED, AFFINE, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    k = begin + tl.arange(0, BLOCK_K)
    inside = (n < columns)[:, None] & (k < depth)[None, :]
    tl.store(w + n.to(tl.int64)[:, None] * depth + k[None, :], value, mask=inside)
