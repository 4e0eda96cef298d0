"""Operations on values in the order in which they lie in memory."""

import triton
import triton.language as tl

from .arithmetic import requantized

__all__ = ["combined", "quantize", "scaled", "table"]


@triton.jit
def quantize(x, q, count, scale, low, high, zero_point, BLOCK: tl.constexpr):
    """``q = clamp(rint(x / scale) + zero_point)``; NaN becomes the zero point."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0.0).to(tl.float32)
    # Plain division is an approximation on GPUs.
    ratio = tl.div_rn(value, scale)
    ratio = tl.where(value == value, ratio, 0.0)
    stored = requantized(ratio, low, high, zero_point)
    tl.store(q + i, stored.to(q.dtype.element_ty), mask=i < count)


@triton.jit
def scaled(
    x,
    y,
    count,
    x_zero,
    scale,
    low,
    high,
    zero_point,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(x - x_zero) * scale``, as it is or rounded."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count, other=0).to(tl.int32) - x_zero
    total = value.to(tl.float32) * scale
    if FLOAT:
        tl.store(y + i, total, mask=i < count)
    else:
        stored = requantized(total, low, high, zero_point)
        tl.store(y + i, stored.to(y.dtype.element_ty), mask=i < count)


@triton.jit
def combined(
    a,
    b,
    y,
    count,
    a_zero,
    b_zero,
    a_scale,
    b_scale,
    low,
    high,
    zero_point,
    PRODUCT: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``da * a_scale + db * b_scale``, or ``da * db * a_scale``, with ``d`` less the zero point."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(a + i, mask=i < count, other=0).to(tl.int32) - a_zero
    right = tl.load(b + i, mask=i < count, other=0).to(tl.int32) - b_zero
    if PRODUCT:
        total = (left * right).to(tl.float32) * a_scale
    else:
        total = left.to(tl.float32) * a_scale + right.to(tl.float32) * b_scale
    if FLOAT:
        tl.store(y + i, total, mask=i < count)
    else:
        stored = requantized(total, low, high, zero_point)
        tl.store(y + i, stored.to(y.dtype.element_ty), mask=i < count)


@triton.jit
def table(x, table, y, count, BLOCK: tl.constexpr):
    """``y = table[byte of x]``."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    byte = tl.load(x + i, mask=i < count, other=0).to(tl.int32)
    tl.store(y + i, tl.load(table + byte), mask=i < count)
