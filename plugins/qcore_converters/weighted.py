"""Base of the operations that have a weight: parameters, BatchNorm in eval and in training."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from qcore import (
    ChannelOp,
    FakeQuantize,
    LearnedFakeQuantize,
    Match,
    Numerics,
    PerChannel,
    PerGroup,
    QConfig,
    quantize_tensor,
)

from .activation import Clamp
from .batch_statistics import apart, batch_factor, running_factor
from .bias import bias_step, round_bias
from .weights import fold_batch_norm, fold_bias, scale_channels

__all__ = ["WeightedOp"]

_TINY = 1e-6
"""A BatchNorm factor below this is not divided by in training: the channel is not quantized, whose
share in the output is as small."""


class WeightedOp(ChannelOp):
    """A layer with weight and bias, an optional BatchNorm, and a clamp at the end.

    In eval mode, and where its statistics are frozen, BatchNorm is folded into weight and bias. In
    training it normalizes with the batch, and the weight is rounded in one of two forms:

    - approximate: as it is deployed, ``w * gamma / sqrt(running_var + eps)``; the factor is divided
      out again, of the weight, and BatchNorm follows. One convolution.
    - exact: as the fold of this batch, ``w * gamma / sqrt(batch_var + eps)``. The statistics are
      those of a convolution with the float weight, so there are two.

    The bias that goes with that weight is rounded to the integers of the accumulator, as the
    contract says; in the approximate form that of the running statistics, whose rounding error is
    added.

    A learned scale of a channel is that of the weight without the factor, which follows: the
    rounding of a weight then changes where the weight or its step does, and not with the statistics
    of every batch. (At 2 bits it is worth a quarter of a point after one epoch.)

    The factor of the approximate form is a constant for the gradient: gamma learns through
    BatchNorm. Its share through the rounding would be the rounding error over the factor, which has
    no bound where gamma nears 0.

    References:
        Krishnamoorthi, 2018, section 3.2.2 <https://arxiv.org/abs/1806.08342>
        Jacob et al., 2018, section 3.2 <https://arxiv.org/abs/1712.05877>
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
        self._tell(running_factor(self.bn))
        return fold_batch_norm(
            weight, bias, self.bn, ch_axis=self.ch_axis, groups=self._fold_groups
        )

    def _tell(self, factor: Tensor) -> None:
        """Tells a learned quantizer with a scale a channel which factor its weight comes with."""
        quantizer = self.weight_quantizer
        by_channel = isinstance(quantizer.scheme.granularity, PerChannel)
        if isinstance(quantizer, LearnedFakeQuantize) and by_channel and self._fold_groups == 1:
            quantizer.set_unit(factor.abs().clamp(min=_TINY))

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

    def preactivation(self, x: Tensor) -> Tensor:
        weight, bias = self.folded()
        return self.layer(self._given(x), self.quantized(weight), bias)

    @property
    def why_no_gain(self) -> str | None:
        scheme = self.weight_quantizer.scheme
        if scheme.power_of_two:
            return "the scales of its weight must be powers of two"
        if not isinstance(scheme.granularity, PerChannel | PerGroup):
            return "its weight does not have a scale a channel"
        if self._fold_groups > 1:
            return "the groups of a transposed convolution share the scales of its weight"
        return None

    @property
    def why_no_shift(self) -> str | None:
        if self.bias is None and self.bn is None:
            return "it has neither bias nor BatchNorm"
        return None

    @torch.no_grad()
    def correct(self, gain: Tensor, shift: Tensor) -> None:
        """Works on the layer and the running mean; gamma and beta of BatchNorm stay.

        With the statistics of a batch, as in training, BatchNorm takes gain and shift out again;
        there they were not missing either. A channel of which gamma is 0 gets no shift.
        """
        quantizer = self.weight_quantizer
        weight, _ = self._float()
        # Folding tells a learned quantizer its factor.
        folded = self.folded()[0]
        qparams = quantizer.qparams()
        integers = quantize_tensor(folded, qparams)
        weight.copy_(self._scaled(weight, gain))
        if isinstance(self.bias, Tensor):
            self.bias.mul_(gain)
        if self.bn is not None:
            self._shift_mean(self.bn, gain, shift)
        elif isinstance(self.bias, Tensor):
            self.bias.add_(shift)
        if self.why_no_gain is None:
            factors = gain.reshape(-1, *[1] * (qparams.scale.ndim - 1))
            quantizer.set_qparams(attrs.evolve(qparams, scale=qparams.scale * factors))
            # A weight halfway between two integers, as the largest is by min-max, may be nearer to
            # the other one now.
            moved = integers - quantize_tensor(self.folded()[0], quantizer.qparams()).int()
            weight.mul_(1 + 1e-5 * (moved * folded).sign())

    @staticmethod
    def _shift_mean(bn: nn.Module, gain: Tensor, shift: Tensor) -> None:
        """Makes ``(gain * y - mean) * factor + beta`` what was asked of ``(y - mean) * factor +
        beta``."""
        factor = running_factor(bn)
        if isinstance(bn.bias, Tensor):
            shift = shift + (gain - 1) * bn.bias
        assert isinstance(bn.running_mean, Tensor)
        bn.running_mean.mul_(gain).sub_(torch.where(factor == 0, 0.0, shift / factor))

    def compute(self, *xs: Tensor) -> Tensor:
        x, *rest = xs
        x = self._given(x)
        if self.bn is None or not self.bn.training or self.batch_norm_frozen:
            weight, bias = self.folded()
            weight = self.quantized(weight)
            y = self.layer(x, weight, None if bias is None else self._rounded(bias))
        elif self.batch_norm_fold == "exact":
            y = self._folded_by_batch(x, self.bn)
        else:
            y = self._normalized_by_batch(x, self.bn)
        # In the memory of the layer's own result, which no backward asks for.
        for other in rest:
            y = y.add_(other) if _fits(other, y) else y + other
        return self.clamp(y)

    def _given(self, x: Tensor) -> Tensor:
        """The first input as the layer takes it."""
        return x if self.dynamic is None else self.dynamic(x)

    def _scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        return scale_channels(weight, factor, ch_axis=self.ch_axis, groups=self._fold_groups)

    def _float(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias without BatchNorm."""
        assert isinstance(self.weight, Tensor)
        assert self.bias is None or isinstance(self.bias, Tensor)
        return self.arranged(self.weight), self.bias

    def _normalized_by_batch(self, x: Tensor, bn: nn.Module) -> Tensor:
        """The approximate form: BatchNorm behind a layer with the weight of deployment."""
        weight, bias = self._float()
        factor = running_factor(bn)
        self._tell(factor)
        dead = factor.abs() < _TINY
        # Dividing the weight costs less than dividing the output, and is the same.
        inverse = torch.where(dead, 0.0, factor.reciprocal())
        restored = self._scaled(self.quantized(self._scaled(weight, factor)), inverse)
        if torch.compiler.is_compiling() or dead.is_cuda or bool(dead.any()):
            restored = restored + self._scaled(weight, dead.to(weight.dtype))
        y = self.layer(x, restored, bias)
        with torch.no_grad():
            deployed = fold_bias(bias, bn, factor)
            error = apart(self._rounded(deployed) - deployed)
        if not isinstance(bn.bias, Tensor):
            return bn(y) + error.reshape(-1, *[1] * (y.ndim - 2))  # type: ignore[no-any-return]
        # In the shift of BatchNorm, which costs no pass over the output.
        shift = {"bias": bn.bias + error}
        return torch.func.functional_call(bn, shift, (y,))  # type: ignore[no-any-return]

    def _folded_by_batch(self, x: Tensor, bn: nn.Module) -> Tensor:
        """The exact form: the weight folded with the statistics of the batch."""
        weight, bias = self._float()
        factor, shift = batch_factor(bn, self.layer(x, weight, bias))
        self._tell(factor)
        if bias is not None:
            shift = shift + bias * factor
        weight = self.quantized(self._scaled(weight, factor))
        return self.layer(x, weight, self._rounded(shift))

    def _rounded(self, bias: Tensor) -> Tensor:
        """A bias of deployment as the accumulator holds it; after the weight was quantized."""
        if not self.input_quantizers:
            return bias
        step = bias_step(
            self.input_quantizers[0],
            self.weight_quantizer,
            self.numerics,
            repeats=self._fold_groups,
        )
        return bias if step is None else round_bias(bias, step)


def _fits(other: Tensor, y: Tensor) -> bool:
    """Whether ``y + other`` is a tensor like ``y``."""
    return other.shape == y.shape and other.dtype == y.dtype
