"""Windows of channels-last activations, and rows of values."""

import triton
import triton.language as tl

from .arithmetic import requantized

__all__ = ["mean", "pool"]


@triton.jit
def pool(
    x,
    y,
    scale,
    first_h,
    last_h,
    first_w,
    last_w,
    rows,
    channels,
    height,
    width,
    y_height,
    y_width,
    kernel_h,
    kernel_w,
    dilation_h,
    dilation_w,
    x_zero,
    low,
    high,
    zero_point,
    LARGEST: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of windows and channels.

    Args:
        x: 8-bit ``[batch, height, width, channels]``; y: ``[rows, channels]``.
        scale: float32 ``[y_height * y_width]``, of an average.
        first_h, last_h: int32 ``[y_height]``, where each window begins, perhaps before the border,
            and ends, within it; first_w, last_w: int32 ``[y_width]``.
        kernel_h, kernel_w: size of the largest window, in taps.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < channels
    pixel = m % (y_height * y_width)
    image = (m // (y_height * y_width)).to(tl.int64) * height * width
    down, right = pixel // y_width, pixel % y_width
    top, left = tl.load(first_h + down), tl.load(first_w + right)
    bottom, edge = tl.load(last_h + down), tl.load(last_w + right)
    if LARGEST:
        acc = tl.full((BLOCK_M, BLOCK_N), -128, dtype=tl.int32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for i in range(kernel_h):
        v = top + i * dilation_h
        for j in range(kernel_w):
            h = left + j * dilation_w
            inside = in_m & (v >= 0) & (v < bottom) & (h >= 0) & (h < edge)
            within = inside[:, None] & in_n[None, :]
            place = (image + v * width + h)[:, None] * channels + n[None, :]
            value = tl.load(x + place, mask=within, other=0).to(tl.int32)
            if LARGEST:
                acc = tl.maximum(acc, tl.where(within, value, -128))
            else:
                acc += tl.where(within, value - x_zero, 0)
    within = in_m[:, None] & in_n[None, :]
    place = m.to(tl.int64)[:, None] * channels + n[None, :]
    if LARGEST:
        tl.store(y + place, acc.to(y.dtype.element_ty), mask=within)
    else:
        total = acc.to(tl.float32) * tl.load(scale + pixel)[:, None]
        if FLOAT:
            tl.store(y + place, total, mask=within)
        else:
            stored = requantized(total, low, high, zero_point)
            tl.store(y + place, stored.to(y.dtype.element_ty), mask=within)


@triton.jit
def mean(
    x,
    y,
    rows,
    count,
    x_zero,
    scale,
    low,
    high,
    zero_point,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sums over the rows of ``x``, 8-bit ``[rows, count]``, times ``scale``."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for begin in range(0, count, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        within = (m < rows)[:, None] & (k < count)[None, :]
        place = m.to(tl.int64)[:, None] * count + k[None, :]
        value = tl.load(x + place, mask=within, other=0).to(tl.int32)
        acc += tl.where(within, value - x_zero, 0)
    total = tl.sum(acc, axis=1).to(tl.float32) * scale
    if FLOAT:
        tl.store(y + m, total, mask=m < rows)
    else:
        stored = requantized(total, low, high, zero_point)
        tl.store(y + m, stored.to(y.dtype.element_ty), mask=m < rows)
