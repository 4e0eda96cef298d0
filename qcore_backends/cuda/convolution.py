"""Convolutions of integers as implicit matrix products over channels-last activations.

Row m of the product is one pixel of the output, its sum runs over the taps of the window and, within
a tap, over the channels of the group. No patch is ever written: each tile of the operand is read
from where it lies in the input. Where a group has few channels (a first layer, grouped layers) one
tile spans several taps.

Pixels beyond the border are read as the zero point of the input, so one correction a channel, found
from the weights when a program is lowered, is right at the border too.
"""

import math
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..values import storage_of
from .arithmetic import placed, requantized, signed
from .kernel import Kernel, float32, given_tensor
from .launch import Tile, launch, launch_tuned
from .output import Output
from .product import Product, effective_weight, why_layer

__all__ = ["Conv", "DepthwiseConv", "PointwiseConv"]


@triton.jit
def _convolution(
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
    UNSIGNED: tl.constexpr,  # noqa: N803
    FLAT: tl.constexpr,  # noqa: N803
    CORRECTED: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    ADDED: tl.constexpr,  # noqa: N803
    FLOAT: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
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
    image = m // (y_height * y_width)
    pixel = m % (y_height * y_width)
    top = (pixel // y_width) * stride_h - padding_h
    left = (pixel % y_width) * stride_w - padding_w
    start = (image.to(tl.int64) * height * width + top * width + left) * x_channels + group * inputs
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
def _depthwise(
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
    CORRECTED: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    ADDED: tl.constexpr,  # noqa: N803
    FLOAT: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
):
    """A block of pixels and channels, where each group has one input channel.

    Args:
        w: int8 ``[taps, channels]``; the others as of :func:`_convolution`.
        columns: output channels of one input channel.
        channels: output channels.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < channels
    image = m // (y_height * y_width)
    pixel = m % (y_height * y_width)
    top = (pixel // y_width) * stride_h - padding_h
    left = (pixel % y_width) * stride_w - padding_w
    start = (image.to(tl.int64) * height * width + top * width + left) * x_channels
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


_TILES = (
    Tile(128, 128, 64, 8, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(64, 64, 64, 4, 5),
    Tile(128, 128, 128, 8, 3),
    Tile(128, 64, 128, 4, 3),
    Tile(256, 64, 64, 8, 3),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 32, 64, 4, 5),
)
_FEW_CHANNELS = (
    Tile(128, 64, 32, 4, 4),
    Tile(128, 32, 32, 4, 4),
    Tile(64, 64, 32, 4, 4),
    Tile(128, 64, 64, 4, 3),
    Tile(128, 16, 32, 4, 4),
)
_ONE_TAP = 32
"""Fewest input channels of a group that fill a tile by themselves."""


class Conv(Kernel):
    """``qconv`` in one or two dimensions."""

    label: ClassVar[str] = "triton int8 convolution"
    inputs: ClassVar[tuple[str, ...]] = ("x", "other")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if len(given["stride"]) > 2:
            return "it is a convolution in three dimensions"
        dtype = storage_of(given["x"])
        why = why_layer(given)
        if why is None and dtype is not None:
            info = torch.iinfo(dtype)
            if any(given["padding"]) and not info.min <= given["x_zero_point"] <= info.max:
                return "the padding is a zero point outside of the dtype of the input"
        return why

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight = effective_weight(given)
        self.flat = weight.ndim == 3
        if self.flat:
            weight = weight.unsqueeze(2)
        self.channels, self.inputs_of_group, *self.window = weight.shape
        self.groups: int = given["groups"]
        pad = {"stride": 1, "padding": 0, "dilation": 1}
        for name, value in pad.items():
            setattr(self, name, [value, *given[name]] if self.flat else list(given[name]))
        self.x_zero: int = given["x_zero_point"]
        self.unsigned = storage_of(given["x"]) == torch.uint8
        self.output = output = Output.of(given)
        self._hold_weight(weight)
        # [N, C, kh, kw] to the order of the sum: taps, then channels.
        zero = self.x_zero - (128 if self.shifted else 0)
        bias = None if given["bias"] is None else given_tensor(given, "bias")
        integer = bias is not None and not bias.is_floating_point()
        correction = -zero * weight.to(torch.int64).flatten(1).sum(1)
        if bias is not None and integer:
            correction += bias
        self.hold("correction", correction.to(torch.int32) if zero or integer else None)
        step = (float32(given["x_scale"]) * given_tensor(given, "w_scale")).expand(self.channels)
        self.hold("scale", output.multiplier(step))
        self.hold("bias", None if bias is None or integer else output.multiplier(bias))
        self.other_zero, self.other_scale = 0, 1.0
        if given["other"] is not None:
            self.other_zero = given["other_zero_point"]
            self.other_scale = float(output.multiplier(float32(given["other_scale"])))

    @property
    def shifted(self) -> bool:
        """Whether the kernel takes 128 off the activations."""
        return self.unsigned

    def _hold_weight(self, weight: Tensor) -> None:
        self.hold("weight", weight.movedim(1, -1))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if self.flat:
            x, other = x.unsqueeze(2), None if other is None else other.unsqueeze(2)
        x = x.permute(0, 2, 3, 1).contiguous()
        batch, height, width, _ = x.shape
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                (height, width), self.window, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        y = x.new_empty((batch, *out, self.channels), dtype=self.output.dtype)
        residual = x if other is None else other.permute(0, 2, 3, 1).contiguous()
        unused = x
        operands = (
            x, self.weight, y,
            unused if self.correction is None else self.correction,
            self.scale,
            unused if self.bias is None else self.bias,
            residual,
        )  # fmt: skip
        geometry = (
            height, width, *out, math.prod(self.window), self.window[1],
            *self.stride, *self.padding, *self.dilation,
        )  # fmt: skip
        epilogue = (self.x_zero, *self.output.clamp, self.other_zero, self.other_scale)
        variant = {
            "CORRECTED": self.correction is not None,
            "BIASED": self.bias is not None,
            "ADDED": other is not None,
            "FLOAT": self.output.is_float,
        }
        self._start(operands, batch * math.prod(out), geometry, epilogue, variant)
        result = y.permute(0, 3, 1, 2)
        return result.squeeze(2).contiguous() if self.flat else result

    def _start(
        self,
        operands: tuple[Tensor, ...],
        rows: int,
        geometry: tuple[int, ...],
        epilogue: tuple[float, ...],
        variant: dict[str, bool],
    ) -> None:
        """Starts the kernel over all pixels of the output."""
        few = self.inputs_of_group < _ONE_TAP
        columns = self.channels // self.groups
        key = (self.inputs_of_group, *geometry, self.unsigned, variant["ADDED"])
        launch_tuned(
            _convolution, rows, columns, *operands, rows, columns, self.channels,
            self.inputs_of_group, self.inputs_of_group * self.groups, *geometry, *epilogue,
            on=operands[0], key=key, tiles=_FEW_CHANNELS if few else _TILES, others=self.groups,
            UNSIGNED=self.unsigned, FLAT=few, **variant,
        )  # fmt: skip


class DepthwiseConv(Conv):
    """``qconv`` whose groups have one input channel each: a product a tap, without tensor cores."""

    label: ClassVar[str] = "triton int8 depthwise convolution"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        why = super().why_not(given)
        if why is None and given_tensor(given, "w").shape[1] != 1:
            return "its groups have several input channels"
        return why

    @property
    def shifted(self) -> bool:
        return False

    def _hold_weight(self, weight: Tensor) -> None:
        self.hold("weight", weight.flatten(1).t())

    def _start(
        self,
        operands: tuple[Tensor, ...],
        rows: int,
        geometry: tuple[int, ...],
        epilogue: tuple[float, ...],
        variant: dict[str, bool],
    ) -> None:
        across = min(64, triton.next_power_of_2(self.channels))
        down = 1024 // across
        grid = (triton.cdiv(rows, down), triton.cdiv(self.channels, across))
        launch(
            _depthwise, grid, *operands, rows, self.channels // self.groups, self.channels,
            self.groups, *geometry, *epilogue, on=operands[0], BLOCK_M=down, BLOCK_N=across, **variant,
        )  # fmt: skip


class PointwiseConv(Product):
    """``qconv`` of single pixels: a plain matrix product of channels-last activations."""

    label: ClassVar[str] = "triton int8 convolution of single pixels"
    inputs: ClassVar[tuple[str, ...]] = ("x", "other")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        why = why_layer(given)
        if why is not None:
            return why
        single = math.prod(given_tensor(given, "w").shape[2:]) == 1 and given["groups"] == 1
        if not single or any(s != 1 for s in given["stride"]) or any(given["padding"]):
            return "it is no convolution of single pixels"
        return None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        batch, _, *space = x.shape
        rows = x.movedim(1, -1).reshape(batch * math.prod(space), self.depth).contiguous()
        if other is not None:
            other = other.movedim(1, -1).reshape(len(rows), self.columns).contiguous()
        y = self.compute(rows, other=other).reshape(batch, *space, self.columns).movedim(-1, 1)
        return y.contiguous() if len(space) == 1 else y
