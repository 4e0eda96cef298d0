"""BatchNorm that no layer could take in: a scale and a shift a channel, as a depthwise 1x1
convolution."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Match,
    PerChannel,
    PerTensor,
    QConfig,
    QFloatOp,
    QScheme,
    Quantizers,
    QValue,
)

from .activation import Clamp, clamp_of
from .weights import fold_batch_norm, integer_weight, put_weight

__all__ = ["QFloatBatchNorm"]


class QFloatBatchNorm(QFloatOp):
    """BatchNorm (+ clamp) of ``[B, C, *spatial]``, in eval mode ``x * factor + shift`` a
    channel."""

    program_op: ClassVar[str] = "qconv"

    def __init__(self, bn: nn.Module, *, quantizer: FakeQuantize, clamp: Clamp, ndim: int) -> None:
        super().__init__()
        self.bn = bn
        self.ndim = ndim
        self.clamp = clamp
        self.weight_quantizer = quantizer

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        bn = match.first.module
        assert bn is not None
        if bn.running_var is None:
            return "it has no running statistics, so it normalizes with each batch"
        value = match.node.meta.get("val")
        if not isinstance(value, Tensor) or value.ndim not in (3, 4, 5):
            return "its input has no spatial dimensions"
        if qconfig.weight is None:
            return "the recipe gives no scheme for weights"
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if not isinstance(scheme.granularity, PerTensor | PerChannel):
            return f"weight scheme {scheme.describe()}: it takes per-tensor or per-channel scales"
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        assert match.first.module is not None
        return cls(
            match.first.module,
            quantizer=quantizers.weight(0),
            clamp=clamp_of(match),
            ndim=match.first.node.meta["val"].ndim,
        )

    def folded(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Depthwise weight ``[C, 1, 1, ...]`` for inputs of ``ndim`` dimensions, and bias
        ``[C]``."""
        var = self.bn.running_var
        assert isinstance(var, Tensor)
        ones = torch.ones((var.numel(), 1, *[1] * (ndim - 2)), device=var.device)
        return fold_batch_norm(ones, None, self.bn)

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        yield self.weight_quantizer, self.folded(3)[0]

    def compute(self, *xs: Tensor) -> Tensor:
        (x,) = xs
        if self.bn.training and not self.batch_norm_frozen:
            return self.clamp(self.bn(x))
        weight, bias = self.folded(3)
        if self.weight_quantizer.observer_enabled:
            self.weight_quantizer.observer.reset()
        channel = [-1, *[1] * (x.ndim - 2)]
        factor = self.weight_quantizer(weight)
        return self.clamp(x * factor.reshape(channel) + bias.reshape(channel))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        weight, bias = self.folded(self.ndim)
        w = integer_weight(weight, bias, self.weight_quantizer, x, self.numerics)
        ones, zeros = [1] * (self.ndim - 2), [0] * (self.ndim - 2)
        y = b.call(
            "qconv",
            x.value,
            x.scale,
            x.zero_point,
            *put_weight(b, w),
            ones,
            zeros,
            ones,
            weight.shape[0],
            None,
            1.0,
            0,
            *self.output_args(self.clamp.low, self.clamp.high),
        )
        return self.result(y)
