"""Convolutions and transposed convolutions in 1 to 3 dimensions, with BatchNorm, residual and
clamp."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Match,
    Numerics,
    PerChannel,
    PerTensor,
    QConfig,
    QScheme,
    Quantizers,
    QValue,
)

from .activation import Clamp, clamp_of
from .weighted import WeightedOp
from .weights import integer_weight, put_float_weight, put_weight

__all__ = ["QFloatConv", "QFloatConvTranspose"]


class _Conv(WeightedOp):
    """What both directions share."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        why = super().why_not(match, qconfig)
        if why is not None:
            return why
        assert qconfig.weight is not None
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if not isinstance(scheme.granularity, PerTensor | PerChannel):
            return (
                f"weight scheme {scheme.describe()}: a convolution takes per-tensor or per-channel "
                "scales"
            )
        return None


class QFloatConv(_Conv):
    """Convolution (+ BatchNorm) (+ residual) (+ clamp) with one output quantizer."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qconv"

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        *,
        quantizer: FakeQuantize,
        bn: nn.Module | None,
        clamp: Clamp,
    ) -> None:
        super().__init__(conv, quantizer=quantizer, bn=bn, clamp=clamp)
        self.stride = tuple(conv.stride)
        self.dilation = tuple(conv.dilation)
        self.groups = conv.groups
        self.padding_mode = conv.padding_mode
        self.before = _sides(conv)

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        conv = match.first.module
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        bn = match.step("batch_norm")
        return cls(
            conv,
            quantizer=quantizers.weight(0),
            bn=bn.module if bn else None,
            clamp=clamp_of(match),
        )

    @property
    def padding(self) -> list[int]:
        """Padding that the convolution itself does."""
        return [a for a, _ in self.before] if not self._pads_first else [0] * len(self.before)

    @property
    def _pads_first(self) -> bool:
        """Whether the input is padded by an operation of its own."""
        return self.padding_mode != "zeros" or any(a != b for a, b in self.before)

    @property
    def _pads(self) -> list[int]:
        """Widths in the order of ``F.pad``, last dimension first."""
        return [width for sides in reversed(self.before) for width in sides]

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._pads_first:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._pads, mode)
        conv = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
        return conv(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        weight, bias = self.folded()
        x, *rest = xs
        geometry = [list(self.stride), self.padding, list(self.dilation), self.groups]
        if not isinstance(x, QValue):
            if self._pads_first:
                mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
                x = b.function(torch.ops.aten.pad.default, x, self._pads, mode)
            w = put_float_weight(b, weight, self.weight_quantizer)
            conv = (
                torch.ops.aten.conv1d.default,
                torch.ops.aten.conv2d.default,
                torch.ops.aten.conv3d.default,
            )[weight.ndim - 3]
            y = b.function(
                conv, x, w, None if bias is None else b.constant("bias", bias), *geometry
            )
            for other in rest:
                y = b.function(torch.ops.aten.add.Tensor, y, other)
            return self.clamp.emit(b, y)
        w = integer_weight(weight, bias, self.weight_quantizer, x, self.numerics)
        data = x.value
        if self._pads_first:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            value = [x.zero_point] if mode == "constant" else []
            data = b.function(torch.ops.aten.pad.default, data, self._pads, mode, *value)
        q, scale, zero_point, q_bias = put_weight(b, w)
        other = rest[0] if rest else None
        y = b.call(
            "qconv",
            data,
            x.scale,
            x.zero_point,
            q,
            scale,
            zero_point,
            q_bias,
            *geometry,
            None if other is None else other.value,
            1.0 if other is None else other.scale,
            0 if other is None else other.zero_point,
            *self.output_args(self.clamp.low, self.clamp.high),
        )
        return self.result(y if self.output_quantizer is not None else self.clamp.emit(b, y))


class QFloatConvTranspose(_Conv):
    """Transposed convolution (+ BatchNorm) (+ clamp) with one output quantizer."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qconv_transpose"
    ch_axis: ClassVar[int] = 1

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        if numerics.accumulator != "int32":
            return f"a transposed convolution has no accumulator {numerics.accumulator!r}"
        return super().why_not_by(numerics, qconfig)

    def __init__(
        self,
        conv: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
        *,
        quantizer: FakeQuantize,
        bn: nn.Module | None,
        clamp: Clamp,
    ) -> None:
        super().__init__(conv, quantizer=quantizer, bn=bn, clamp=clamp, groups=conv.groups)
        self.stride = tuple(conv.stride)
        self.dilation = tuple(conv.dilation)
        self.padding = [int(p) for p in conv.padding]
        self.output_padding = list(conv.output_padding)

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        conv = match.first.module
        assert isinstance(conv, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        bn = match.step("batch_norm")
        return cls(
            conv,
            quantizer=quantizers.weight(1),
            bn=bn.module if bn else None,
            clamp=clamp_of(match),
        )

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
        return conv(x, weight, bias, *self._geometry())

    def _geometry(self) -> Sequence[Any]:
        return (
            list(self.stride),
            self.padding,
            self.output_padding,
            self.groups,
            list(self.dilation),
        )

    def emit(self, b: Builder, *xs: QValue) -> Any:
        weight, bias = self.folded()
        (x,) = xs
        if not isinstance(x, QValue):
            w = put_float_weight(b, weight, self.weight_quantizer)
            conv = (
                torch.ops.aten.conv_transpose1d.default,
                torch.ops.aten.conv_transpose2d.input,
                torch.ops.aten.conv_transpose3d.input,
            )[weight.ndim - 3]
            bias_value = None if bias is None else b.constant("bias", bias)
            return self.clamp.emit(b, b.function(conv, x, w, bias_value, *self._geometry()))
        integers = integer_weight(
            weight, bias, self.weight_quantizer, x, self.numerics, ch_axis=1, groups=self.groups
        )
        y = b.call(
            "qconv_transpose",
            x.value,
            x.scale,
            x.zero_point,
            *put_weight(b, integers),
            list(self.stride),
            self.padding,
            self.output_padding,
            list(self.dilation),
            self.groups,
            *self.output_args(self.clamp.low, self.clamp.high),
        )
        return self.result(y if self.output_quantizer is not None else self.clamp.emit(b, y))


def _sides(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[tuple[int, int]]:
    """Padding before and after each spatial dimension."""
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    return [(int(p), int(p)) for p in conv.padding]
