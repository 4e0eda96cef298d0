"""Convolutions on oneDNN, in one to three dimensions, with a fused residual in two."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..values import constant, storage_of
from .linear import PackedLinear
from .packed import Packed

__all__ = ["PackedConv", "PackedConvTranspose", "PackedPointwiseConv"]

_POINTWISE = torch.ops.onednn.qconv_pointwise.default
_BINARY = torch.ops.onednn.qconv2d_pointwise.binary


class PackedConv(Packed):
    """``qconv``.

    Attributes:
        overwrite: the residual is read by nobody after this layer, so the sum may go into its
            memory, as the kernel would have it.
    """

    label: ClassVar[str] = "onednn.qconv"
    inputs: ClassVar[tuple[str, ...]] = ("x", "other")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        why = super().why_not(given)
        if why is None and given["other"] is not None:
            if len(given["stride"]) != 2:
                return "oneDNN adds a residual in two dimensions only"
            if given["y_dtype"] == torch.float32:
                return "a residual is added to a float output"
            if storage_of(given["other"]) != given["y_dtype"]:
                return "the residual has another storage than the output"
        return why

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight = constant(given["w"])
        assert weight is not None
        self.overwrite = False
        self.geometry = tuple(list(given[key]) for key in ("stride", "padding", "dilation"))
        self.kernel = list(weight.shape[2:])
        packed = torch.ops.onednn.qconv_prepack(
            weight.contiguous(), self.scale, 1.0, self.x_zero_point, *self.geometry, given["groups"]
        )
        self.operands = (1.0, self.x_zero_point, packed, self.scale, self.zeros)
        layer = (self.bias, *self.geometry, given["groups"], *self.output)
        self.plain = (*layer, self.post, [], "")
        residual = (given["other_scale"], given["other_zero_point"])
        self.fused = (*layer, *residual, "sum", 1.0, self.post, [], "")

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if x.numel() == 0:
            return x.new_empty(self._empty_shape(x), dtype=self.dtype)
        x = self.unsigned(x)
        if other is None:
            return self.clamped(_POINTWISE(x, *self.operands, *self.plain))
        # The kernel adds into the memory of the residual, which others may still read.
        if not self.overwrite or not other.is_contiguous(memory_format=torch.channels_last):
            other = other.clone(memory_format=torch.channels_last)
        return self.clamped(_BINARY(x, *self.operands, other, *self.fused))

    def _empty_shape(self, x: Tensor) -> list[int]:
        sizes = zip(x.shape[2:], self.kernel, *self.geometry, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        return [x.shape[0], self.scale.numel(), *out]


class PackedPointwiseConv(PackedLinear):
    """``qconv`` of single pixels as a linear layer of their channels.

    oneDNN's convolutions pay for a zero point of the input by a sum over the weights in every call,
    its linear layers hardly at all.
    """

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        weight = constant(given["w"])
        pixels = (
            weight is not None
            and math.prod(weight.shape[2:]) == 1
            and given["groups"] == 1
            and all(s == 1 for s in given["stride"])
            and not any(given["padding"])
        )
        if not pixels or given["other"] is not None:
            return "it is no plain convolution of single pixels"
        if given["x_zero_point"] + (128 if storage_of(given["x"]) == torch.int8 else 0) == 0:
            return "a convolution is as fast without a zero point"
        return super().why_not(given)

    @staticmethod
    def weight(given: dict[str, Any]) -> Tensor:
        weight = constant(given["w"])
        assert weight is not None
        return weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PackedConvTranspose(Packed):
    """``qconv_transpose`` as a convolution: of the input with zeros between its values, and around
    them, with the kernel turned around.

    oneDNN has no transposed convolution of integers in torch. Each output is the sum of the same
    products, and a sum of integers has no order.
    """

    label: ClassVar[str] = "onednn.qconv of the spread input"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @staticmethod
    def channels(given: dict[str, Any]) -> int:
        weight = constant(given["w"])
        assert weight is not None
        return int(weight.shape[1] * given["groups"])

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight = constant(given["w"])
        assert weight is not None
        groups, dilation = given["groups"], list(given["dilation"])
        dims = weight.ndim - 2
        self.stride = list(given["stride"])
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        self.before = [r - p for r, p in zip(reach, given["padding"], strict=True)]
        self.after = [b + o for b, o in zip(self.before, given["output_padding"], strict=True)]
        # [C, N / groups, ...] to [N, C / groups, ...].
        split = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        turned = split.flip(list(range(2, weight.ndim))).contiguous()
        ones, zeros = [1] * dims, [0] * dims
        packed = torch.ops.onednn.qconv_prepack(
            turned, self.scale, 1.0, self.x_zero_point, ones, zeros, dilation, groups
        )
        self.operands = (1.0, self.x_zero_point, packed, self.scale, self.zeros)
        geometry = (ones, zeros, dilation, groups)
        self.layer = (self.bias, *geometry, *self.output, self.post, [], "")
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        spread = self._spread(self.unsigned(x))
        if spread.numel() == 0:
            size = [n - r for n, r in zip(spread.shape[2:], self.reach, strict=True)]
            return x.new_empty((x.shape[0], self.scale.numel(), *size), dtype=self.dtype)
        return self.clamped(_POINTWISE(spread, *self.operands, *self.layer))

    def _spread(self, x: Tensor) -> Tensor:
        """``x`` with zeros put in and around; where the padding takes more than there is around,
        cut."""
        sizes = list(zip(x.shape[2:], self.stride, self.before, self.after, strict=True))
        full = [(n - 1) * s + 1 + max(b, 0) + max(a, 0) for n, s, b, a in sizes]
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        spread = torch.full((*x.shape[:2], *full), self.x_zero_point, dtype=torch.uint8).contiguous(
            memory_format=formats.get(x.ndim, torch.contiguous_format)
        )
        inner = spread
        for dim, (n, s, b, _) in enumerate(sizes, start=2):
            start = max(b, 0)
            stop = start + (n - 1) * s + 1
            index = [slice(None)] * x.ndim
            index[dim] = slice(start, stop, s)
            inner = inner[tuple(index)]
        inner.copy_(x)
        for dim, (_, _, b, a) in enumerate(sizes, start=2):
            cut = spread.shape[dim] - max(-b, 0) - max(-a, 0)
            spread = spread.narrow(dim, max(-b, 0), cut)
        return spread
