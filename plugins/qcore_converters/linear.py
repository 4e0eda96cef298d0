"""Linear layers, with BatchNorm and clamp; per tensor, per channel or in groups along the
inputs."""

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from qcore import (
    Builder,
    Match,
    Numerics,
    PerChannel,
    PerGroup,
    PerTensor,
    QConfig,
    QScheme,
    QuantizationError,
    Quantizers,
    QValue,
)

from .activation import clamp_of
from .weighted import WeightedOp
from .weights import integer_weight, put_float_weight, put_weight

__all__ = ["QFloatLinear", "QFloatTransposedLinear"]


class QFloatLinear(WeightedOp):
    """Linear (+ BatchNorm) (+ clamp) with one output quantizer."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qlinear"

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        why = super().why_not(match, qconfig)
        if why is not None:
            return why
        linear = match.first.module
        assert linear is not None
        assert isinstance(linear.weight, Tensor)
        shape = cls.arranged(linear.weight).shape
        assert qconfig.weight is not None
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if not isinstance(scheme.granularity, PerTensor | PerChannel | PerGroup):
            return (
                f"weight scheme {scheme.describe()}: a linear layer takes per-tensor, per-channel "
                "or per-group scales"
            )
        try:
            scheme.granularity.block_shape(shape)
        except QuantizationError as error:
            raise QuantizationError(
                f"layer {match.name!r} ({match.first.kind}, weight {list(shape)}): {error}; an "
                "override for this layer can set another scheme"
            ) from None
        return None

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        assert qconfig.weight is not None
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if numerics.requantization == "fixed_point" and isinstance(scheme.granularity, PerGroup):
            return (
                f"weight scheme {scheme.describe()}: groups are added in float32, which "
                "requantization 'fixed_point' does not have"
            )
        return super().why_not_by(numerics, qconfig)

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        linear = match.first.module
        assert linear is not None
        bn = match.step("batch_norm")
        return cls(
            linear,
            quantizer=quantizers.weight(0),
            bn=bn.module if bn else None,
            clamp=clamp_of(match),
        )

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        weight, bias = self.folded()
        (x,) = xs
        if not isinstance(x, QValue):
            w = put_float_weight(b, weight, self.weight_quantizer)
            bias_value = None if bias is None else b.constant("bias", bias)
            return self.clamp.emit(b, b.function(torch.ops.aten.linear.default, x, w, bias_value))
        integers = integer_weight(weight, bias, self.weight_quantizer, x, self.numerics)
        y = b.call(
            "qlinear",
            x.value,
            x.scale,
            x.zero_point,
            *put_weight(b, integers),
            *self.output_args(self.clamp.low, self.clamp.high),
        )
        return self.result(y if self.output_quantizer is not None else self.clamp.emit(b, y))


class QFloatTransposedLinear(QFloatLinear):
    """A linear layer that stores its weight as ``[K, N]``, as that of GPT-2 does.

    Its scheme is of the weight as ``[N, K]``: per channel is one scale an output, groups run along
    K.
    """

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        return weight.t()
