"""Tiles of convolutions; :mod:`..convolution` has the formula."""

import triton
import triton.language as tl

from .arithmetic import placed, requantized, signed

__all__ = ["convolution", "depthwise"]


@triton.jit
def corner(
    m,
    height,
    width,
    y_height,
    y_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
):
    """Where the window of each pixel ``m`` of the output begins: row and column, perhaps before the
    border, and which pixel of all images that is, in int64."""
    image = m // (y_height * y_width)
    pixel = m % (y_height * y_width)
    top = (pixel // y_width) * stride_h - padding_h
    left = (pixel % y_width) * stride_w - padding_w
    return top, left, image.to(tl.int64) * height * width + top * width + left


@triton.jit
def finish(
    acc,
    m,
    n,
    in_m,
    in_n,
    y,
    correction,
    scale,
    bias,
    other,
    channels,
    low,
    high,
    zero_point,
    other_zero,
    other_scale,
    CORRECTED: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    FLOAT: tl.constexpr,
):
    """Stores the outputs of pixels ``m`` and channels ``n`` of all groups, from their sums."""
    if CORRECTED:
        acc += tl.load(correction + n, mask=in_n, other=0)[None, :]
    total = acc.to(tl.float32) * tl.load(scale + n, mask=in_n, other=0.0)[None, :]
    if BIASED:
        total = total + tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    within = in_m[:, None] & in_n[None, :]
    place = m.to(tl.int64)[:, None] * channels + n[None, :]
    if ADDED:
        residual = tl.load(other + place, mask=within, other=0).to(tl.int32) - other_zero
        total = total + residual.to(tl.float32) * other_scale
    if FLOAT:
        tl.store(y + place, total, mask=within)
    else:
        stored = requantized(total, low, high, zero_point)
        tl.store(y + place, stored.to(y.dtype.element_ty), mask=within)


@triton.jit
def convolution(
    x,
    w,
    y,
    correction,
    scale,
    bias,
    other,
    rows,
    columns,
    channels,
    inputs,
    x_channels,
    height,
    width,
    y_height,
    y_width,
    taps,
    kernel_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    x_zero,
    low,
    high,
    zero_point,
    other_zero,
    other_scale,
    UNSIGNED: tl.constexpr,
    FLAT: tl.constexpr,
    CORRECTED: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output of one group, which is the second axis of the grid.

    Args:
        x: 8-bit ``[batch, height, width, groups * inputs]``; w: int8 ``[groups * columns, taps,
            inputs]``; y: ``[rows, channels]``.
        correction: int32, scale, bias: float32 ``[channels]``; other: like ``y``.
        rows: pixels of the output of all images; columns: output channels of a group; channels: of
            all groups; inputs: input channels of a group; x_channels: of all groups.
        x_zero: the zero point of ``x`` in its own dtype.
    """
    tile_m, tile_n = placed(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N))
    group = tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < columns
    top, left, first = corner(
        m, height, width, y_height, y_width, stride_h, stride_w, padding_h, padding_w
    )
    start = first * x_channels + group * inputs
    row = (group * columns + tl.minimum(n, columns - 1)).to(tl.int64) * (taps * inputs)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    if FLAT:
        for begin in range(0, taps * inputs, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            tap, channel = k // inputs, k % inputs
            down, right = tap // kernel_width * dilation_h, tap % kernel_width * dilation_w
            v, h = top[:, None] + down[None, :], left[:, None] + right[None, :]
            inside = in_m[:, None] & (v >= 0) & (v < height) & (h >= 0) & (h < width)
            offset = (down * width + right) * x_channels + channel
            a = tl.load(
                x + start[:, None] + offset[None, :],
                mask=inside & (k < taps * inputs)[None, :],
                other=x_zero,
            )
            b = tl.load(w + row[None, :] + k[:, None], mask=k[:, None] < taps * inputs, other=0)
            acc = tl.dot(signed(a, UNSIGNED), b, acc, out_dtype=tl.int32)
    else:
        parts = tl.cdiv(inputs, BLOCK_K)
        for i in range(taps * parts):
            tap = i // parts
            channel = i % parts * BLOCK_K + tl.arange(0, BLOCK_K)
            down, right = tap // kernel_width * dilation_h, tap % kernel_width * dilation_w
            v, h = top + down, left + right
            inside = in_m & (v >= 0) & (v < height) & (h >= 0) & (h < width)
            offset = (down * width + right) * x_channels + channel
            a = tl.load(
                x + start[:, None] + offset[None, :],
                mask=inside[:, None] & (channel < inputs)[None, :],
                other=x_zero,
            )
            b = tl.load(
                w + row[None, :] + (tap * inputs + channel)[:, None],
                mask=channel[:, None] < inputs,
                other=0,
            )
            acc = tl.dot(signed(a, UNSIGNED), b, acc, out_dtype=tl.int32)
    n = group * columns + n
    finish(
        acc, m, n, in_m, in_n, y, correction, scale, bias, other, channels,
        low, high, zero_point, other_zero, other_scale, CORRECTED, BIASED, ADDED, FLOAT,
    )  # fmt: skip


@triton.jit
def depthwise(
    x,
    w,
    y,
    correction,
    scale,
    bias,
    other,
    rows,
    columns,
    channels,
    x_channels,
    height,
    width,
    y_height,
    y_width,
    taps,
    kernel_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    x_zero,
    low,
    high,
    zero_point,
    other_zero,
    other_scale,
    CORRECTED: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of pixels and channels, where each group has one input channel.

    Args:
        w: int8 ``[taps, channels]``; the others as of :func:`convolution`.
        columns: output channels of one input channel.
        channels: output channels.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < channels
    top, left, first = corner(
        m, height, width, y_height, y_width, stride_h, stride_w, padding_h, padding_w
    )
    start = first * x_channels
    source = n // columns
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for tap in range(taps):
        down, right = tap // kernel_width * dilation_h, tap % kernel_width * dilation_w
        v, h = top + down, left + right
        inside = in_m & (v >= 0) & (v < height) & (h >= 0) & (h < width)
        a = tl.load(
            x + (start + (down * width + right) * x_channels)[:, None] + source[None, :],
            mask=inside[:, None] & in_n[None, :],
            other=x_zero,
        )
        b = tl.load(w + tap * channels + n, mask=in_n, other=0)
        acc += a.to(tl.int32) * b.to(tl.int32)[None, :]
    finish(
        acc, m, n, in_m, in_n, y, correction, scale, bias, other, channels,
        low, high, zero_point, other_zero, other_scale, CORRECTED, BIASED, ADDED, FLOAT,
    )  # fmt: skip
