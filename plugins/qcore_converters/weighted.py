"""Base of the operations that have a weight: parameters, BatchNorm in eval and in training."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from qcore import FakeQuantize, Match, Numerics, QConfig, QFloatOp

from .activation import Clamp
from .weights import batch_norm_factor, fold_batch_norm, scale_channels

__all__ = ["WeightedOp"]

_TINY = 1e-6
"""A BatchNorm factor below this is not divided by in training: the channel is quantized
unscaled."""


class WeightedOp(QFloatOp):
    """A layer with weight and bias, an optional BatchNorm, and a clamp at the end.

    In eval mode BatchNorm is folded into weight and bias. In training the weight is scaled by the
    running statistics, quantized, and the scale divided out again before BatchNorm normalizes with
    the
    batch: the rounding is that of deployment, the statistics are those of training.

    References:
        Krishnamoorthi, 2018, section 3.2.2 <https://arxiv.org/abs/1806.08342>
    """

    ch_axis: ClassVar[int] = 0

    def __init__(
        self,
        layer: nn.Module,
        *,
        quantizer: FakeQuantize,
        bn: nn.Module | None,
        clamp: Clamp,
        groups: int = 1,
    ) -> None:
        super().__init__()
        # The same Parameter objects, so layers that share weights go on sharing them.
        self.register_parameter("weight", layer.weight)  # type: ignore[arg-type]
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.bn = bn
        self.clamp = clamp
        self.groups = groups
        self.weight_quantizer = quantizer

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        layer = match.first.module
        assert layer is not None
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            return (
                "its weight is computed from other parameters (weight norm, pruning, ...); make it "
                "a parameter first, with torch.nn.utils.parametrize.remove_parametrizations for "
                "instance"
            )
        if len(match.first.arguments) > 1:
            return "it is called with more than its input"
        return None

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        assert qconfig.weight is not None
        assert qconfig.activation is not None
        schemes = qconfig.weight.scheme, qconfig.activation.scheme
        assert not any(isinstance(scheme, str) for scheme in schemes)
        if numerics.accumulator == "int16_pairs" and any(s.dtype.bits > 8 for s in schemes):  # type: ignore[union-attr]
            return "accumulator 'int16_pairs' multiplies operands of at most 8 bits"
        return None

    @abstractmethod
    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The float layer."""

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        """The layer's weight with its dimensions in the order that :meth:`layer` takes."""
        return weight

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with BatchNorm folded in by its running statistics."""
        assert isinstance(self.weight, Tensor)
        weight, bias = self.arranged(self.weight), self.bias
        assert bias is None or isinstance(bias, Tensor)
        if self.bn is None:
            return weight, bias
        return fold_batch_norm(
            weight, bias, self.bn, ch_axis=self.ch_axis, groups=self._fold_groups
        )

    @property
    def _fold_groups(self) -> int:
        return self.groups if self.ch_axis == 1 else 1

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        yield self.weight_quantizer, self.folded()[0]

    def quantized(self, weight: Tensor) -> Tensor:
        """The fake-quantized weight; an observer that is on sees this weight and no earlier one."""
        if self.weight_quantizer.observer_enabled:
            self.weight_quantizer.observer.reset()
        return self.weight_quantizer(weight)  # type: ignore[no-any-return]

    def compute(self, *xs: Tensor) -> Tensor:
        x, *rest = xs
        if self.bn is not None and self.bn.training:
            y = self._normalized_by_batch(x)
        else:
            weight, bias = self.folded()
            y = self.layer(x, self.quantized(weight), bias)
        for other in rest:
            y = y + other
        return self.clamp(y)

    def _normalized_by_batch(self, x: Tensor) -> Tensor:
        assert self.bn is not None
        assert isinstance(self.weight, Tensor)
        factor = batch_norm_factor(self.bn)
        factor = torch.where(factor.abs() < _TINY, torch.ones_like(factor), factor)
        weight = self.arranged(self.weight)
        scaled = scale_channels(weight, factor, ch_axis=self.ch_axis, groups=self._fold_groups)
        y = self.layer(x, self.quantized(scaled), None)
        channel = self.channel_shape(y)
        y = y / factor.reshape(channel)
        if isinstance(self.bias, Tensor):
            y = y + self.bias.reshape(channel)
        return self.bn(y)  # type: ignore[no-any-return]

    def channel_shape(self, y: Tensor) -> list[int]:
        """Shape that broadcasts a value a channel against the layer's output."""
        return [-1, *[1] * (y.ndim - 2)]
