"""Convolutions of integers as implicit matrix products over channels-last activations.

Row m of the product is one pixel of the output; its sum runs over the taps of the window and, in
each tap, over the channels of the group. No patch is ever written: each tile of the operand is read
from where it lies in the input. Where a group has few channels (a first layer, grouped layers) one
tile spans several taps.

Pixels beyond the border are read as the zero point of the input, so one correction a channel, found
from the weights when a program is lowered, is right at the border too.
"""

import math
from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

from ..values import storage_of
from .kernel import given_tensor
from .kernels.convolution import convolution, depthwise
from .launch import Tile, launch, launch_tuned
from .layer import Layer, effective_weight, why_layer
from .product import Product

__all__ = ["Conv", "DepthwiseConv", "PointwiseConv"]


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


class Conv(Layer):
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
        flat = self.flat
        self.stride = [*[1] * flat, *given["stride"]]
        self.padding = [*[0] * flat, *given["padding"]]
        self.dilation = [*[1] * flat, *given["dilation"]]
        self.x_zero: int = given["x_zero_point"]
        self.unsigned = storage_of(given["x"]) == torch.uint8
        self.hold_terms(given, weight, self.x_zero - (128 if self.shifted else 0))
        self.hold_weight(weight)

    @property
    def shifted(self) -> bool:
        """Whether the kernel takes 128 off the activations."""
        return self.unsigned

    def hold_weight(self, weight: Tensor) -> None:
        """Keeps the weight ``[N, C, kh, kw]`` in the order of the sum: taps, then channels."""
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
        operands = (x, self.weight, y, *self.terms(x), residual)
        geometry = (
            height, width, *out, math.prod(self.window), self.window[1],
            *self.stride, *self.padding, *self.dilation,
        )  # fmt: skip
        epilogue = (self.x_zero, *self.output.clamp, self.other_zero, self.other_scale)
        self._start(operands, batch * math.prod(out), geometry, epilogue, self.variant(other))
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
            convolution, rows, columns, *operands, rows, columns, self.channels,
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

    def hold_weight(self, weight: Tensor) -> None:
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
            depthwise, grid, *operands, rows, self.channels // self.groups, self.channels,
            self.groups, *geometry, *epilogue,
            on=operands[0], BLOCK_M=down, BLOCK_N=across, **variant,
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
