"""A convolution and the SiLU behind it as one operation, with 14 bits in between.

By themselves they round twice to 8 bits: the convolution's result, much of whose range SiLU then
flattens, and SiLU's. Fused, the accumulator goes to 14 bits and through a table of 16,383 entries
to the output, whose rounding is the only one that shows. All of it is integers, equal in QFloat
and Q.

The 14 bits need no calibration: their range follows from the output's. Above, SiLU is at least
``x - 0.2785``; what it maps beyond the largest output may saturate. Below ``-t`` with
``t = 2 ln(2 / s)`` it is smaller than half a step ``s`` of the output, because
``t exp(-t) < s / 2`` is ``s ln(2 / s) < 1``, which holds for every ``s``.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcore import Builder, Match, QConfig, QScheme, QValue, default_host, quantize_tensor

__all__ = ["QFloatConvSilu", "pre_activation_bound", "unfit"]

LEVELS = 2**13 - 1
"""Largest of the integers between convolution and SiLU, which are symmetric."""

_DIP = 0.2785
"""The largest distance of SiLU from relu, at 1.2785; its minimum is the negative of it."""


def pre_activation_bound(scale: float, high: float) -> float:
    """The magnitude beyond which no input of SiLU changes its quantized output.

    Args:
        scale: step of the output.
        high: the largest output.

    >>> bound = pre_activation_bound(scale=0.02, high=4.0)
    >>> round(bound, 2)
    9.21
    >>> (F.silu(torch.tensor([-bound, bound])) / 0.02).round().tolist()  # 0, and beyond 200
    [-0.0, 460.0]
    """
    below = 2 * math.log(2 / scale) if scale < 2 else 0.0
    return max(below, high + _DIP, 1 + _DIP)


def unfit(match: Match) -> str | None:
    """Why a BatchNorm between the two can't be folded; None if it can, or there is none."""
    step = match.step("batch_norm")
    if step is None:
        return None
    before, weight = match.first.node.meta.get("val"), getattr(match.first.module, "weight", None)
    if getattr(step.module, "running_var", None) is None:
        return "BatchNorm has no running statistics, so it normalizes with each batch"
    if isinstance(before, Tensor) and isinstance(weight, Tensor) and before.ndim != weight.ndim:
        return "the convolution has no batch, so BatchNorm normalizes another dimension"
    return None


# The converter of convolutions that is installed, as a base class: BatchNorm, padding and weights
# are its business.
_Conv: Any = default_host().get("converter", "converters:conv2d")


class QFloatConvSilu(_Conv):  # type: ignore[misc]
    """Convolution (+ BatchNorm) + SiLU with one output quantizer of at most 8 bits."""

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        activation = qconfig.activation
        if activation is not None and isinstance(activation.scheme, QScheme):
            bits = activation.scheme.dtype.bits
            if bits > 8:
                return f"activations have {bits} bits, but there are 14 before SiLU"
        why: str | None = super().why_not(match, qconfig)
        return why

    def compute(self, *xs: Tensor) -> Tensor:
        return F.silu(super().compute(*xs))

    def output_args(
        self, low: float | None = None, high: float | None = None
    ) -> tuple[float, int, int, int, torch.dtype, str]:
        if self.output_quantizer is None:
            return super().output_args(low, high)  # type: ignore[no-any-return]
        return self._step(), 0, -LEVELS, LEVELS, torch.int16, self.numerics.key

    def emit(self, b: Builder, *xs: QValue) -> Any:
        y = super().emit(b, *xs)
        if not isinstance(y, QValue):
            return b.function(torch.ops.aten.silu.default, y)
        qparams = self.output_quantizer.qparams()
        inputs = torch.arange(-LEVELS, LEVELS + 1, device=qparams.scale.device) * self._step()
        table = quantize_tensor(F.silu(inputs), qparams)
        return y.replace(b.call("qtable", y.value, b.constant("table", table), -LEVELS))

    def _step(self) -> float:
        """Scale of the integers between convolution and SiLU."""
        y = QValue.of(None, self.output_quantizer.qparams())
        high = y.scale * (y.dtype.quant_max - y.zero_point)
        return pre_activation_bound(y.scale, high) / LEVELS


def conv_silu() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Modules to try the shorter chain on, for the conformance kit."""
    for conv in (nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)):
        yield nn.Sequential(conv, nn.SiLU(), nn.Conv2d(conv.out_channels, 2, 1)), (_images(),)


def conv_bn_silu() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Modules to try the longer chain on."""
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False)
    yield nn.Sequential(conv, nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1)), (_images(),)


def examples() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Modules to try the converter on: those of both chains."""
    yield from conv_silu()
    yield from conv_bn_silu()


def _images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
