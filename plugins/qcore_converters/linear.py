"""Linear layers, with BatchNorm and clamp; per tensor, per channel or in groups along the
inputs."""

from typing import Any, ClassVar, Self

import attrs
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
    PerToken,
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
    channel_dim: ClassVar[int] = -1
    program_op: ClassVar[str] = "qlinear"
    dynamic_op: ClassVar[str] = "qlinear_dynamic"

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
        if _at_run_time(qconfig):
            # A float result is the same by every contract, if only the sums are exact.
            if numerics.accumulator != "int32":
                return (
                    f"accumulator {numerics.accumulator!r}: a layer that quantizes its inputs at "
                    "run time adds up in 32 bits"
                )
            return None
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
        op = cls(
            linear,
            quantizer=quantizers.weight(0),
            bn=bn.module if bn else None,
            clamp=clamp_of(match),
        )
        op.dynamic = quantizers.dynamic()
        return op

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        weight, bias = self.folded()
        (x,) = xs
        if self.dynamic is not None:
            dtype = self.dynamic.scheme.dtype
            # Of the input, only the range is known before: for the bound on the accumulator.
            tokens = QValue(value=None, scale=1.0, zero_point=0, dtype=dtype)
            numerics = attrs.evolve(self.numerics, bias="float32")
            integers = integer_weight(weight, bias, self.weight_quantizer, tokens, numerics)
            weights = put_weight(b, integers)
            y = b.call(self.dynamic_op, x, dtype.quant_min, dtype.quant_max, *weights)
            return self.clamp.emit(b, y)
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


def _at_run_time(qconfig: QConfig) -> bool:
    """Whether inputs are quantized at run time, one scale a token."""
    scheme = None if qconfig.activation is None else qconfig.activation.scheme
    return isinstance(scheme, QScheme) and isinstance(scheme.granularity, PerToken)


class QFloatTransposedLinear(QFloatLinear):
    """A linear layer that stores its weight as ``[K, N]``, as that of GPT-2 does.

    Its scheme is of the weight as ``[N, K]``: per channel is one scale an output, groups run along
    K.
    """

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        return weight.t()
