"""A gated linear layer, ``(x A^T + a) * sigmoid(x B^T + b)``, and its quantized form.

One linear layer makes both halves, as integers of 16 bits. A table turns the second half into
gates, of 14 bits, and an integer product makes the output: the one rounding that shows. The range
of the 16 bits is the largest value that the weights can make of any input, so nothing saturates
and nothing needs calibration. The table ends at +-10, where a gate is 0.00005 from closed or open.

References:
    Dauphin et al., 2017, Language modeling with gated convolutional networks
    <https://arxiv.org/abs/1612.08083>
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcore import Builder, QValue, default_host, dequantize_tensor, quantize_tensor

__all__ = ["GatedLinear", "QFloatGatedLinear"]

LEVELS = 2**15 - 1
"""Largest of the integers behind the linear layer, which are symmetric."""

GATE_LEVELS = 2**13 - 1
"""Largest of the integers before and behind the table."""

GATE_BOUND = 10.0
"""Where the table ends."""


class GatedLinear(nn.Module):
    """``value * sigmoid(gate)``, both linear in the input.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.

    Attributes:
        weight: ``[2 * out_features, in_features]``; the rows of the gates come last.
        bias: ``[2 * out_features]``.

    >>> GatedLinear(8, 3)(torch.zeros(2, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(2 * out_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        value, gate = F.linear(x, self.weight, self.bias).chunk(2, -1)
        return value * gate.sigmoid()


# The converter of linear layers that is installed, as a base class.
_Linear: Any = default_host().get("converter", "converters:linear")


class QFloatGatedLinear(_Linear):  # type: ignore[misc]
    """The gated layer with one output quantizer."""

    def compute(self, *xs: Tensor) -> Tensor:
        value, gate = super().compute(*xs).chunk(2, -1)
        y: Tensor = value * gate.sigmoid()
        return y

    def output_args(
        self, low: float | None = None, high: float | None = None
    ) -> tuple[float, int, int, int, torch.dtype, str]:
        if self.output_quantizer is None:
            return super().output_args(low, high)  # type: ignore[no-any-return]
        return self._step(), 0, -LEVELS, LEVELS, torch.int16, self.numerics.key

    def emit(self, b: Builder, *xs: QValue) -> Any:
        y = super().emit(b, *xs)
        both = y.value if isinstance(y, QValue) else y
        size = self.weight.shape[0] // 2
        value = b.function(torch.ops.aten.slice.Tensor, both, -1, 0, size)
        gate = b.function(torch.ops.aten.slice.Tensor, both, -1, size, 2 * size)
        if not isinstance(y, QValue):
            gate = b.function(torch.ops.aten.sigmoid.default, gate)
            return b.function(torch.ops.aten.mul.Tensor, value, gate)
        step = GATE_BOUND / GATE_LEVELS
        narrow = (step, 0, -GATE_LEVELS, GATE_LEVELS, torch.int16, self.numerics.key)
        gate = b.call("qrequantize", gate, self._step(), 0, *narrow)
        levels = torch.arange(-GATE_LEVELS, GATE_LEVELS + 1, device=self.weight.device)
        table = ((levels * step).sigmoid() * GATE_LEVELS).round().to(torch.int16)
        gate = b.call("qtable", gate, b.constant("table", table), -GATE_LEVELS)
        halves = (value, self._step(), 0, gate, 1 / GATE_LEVELS, 0)
        return y.replace(b.call("qmul", *halves, *super().output_args()))

    def _step(self) -> float:
        """Scale behind the linear layer: the largest sum over the largest integer."""
        x = QValue.of(None, self.input_quantizers[0].qparams())
        most = x.scale * max(x.dtype.quant_max - x.zero_point, x.zero_point - x.dtype.quant_min)
        ((quantizer, weight),) = self.weight_quantizers()
        qparams = quantizer.qparams()
        rounded = dequantize_tensor(quantize_tensor(weight, qparams), qparams)
        return float((most * rounded.abs().sum(1) + self.bias.abs()).max()) / LEVELS or 1.0


def examples() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Modules to try the converter on, for the conformance kit."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 12), (2, 7, 12)):
        x = torch.randn(shape, generator=generator)
        yield nn.Sequential(nn.Linear(12, 12), nn.ReLU(), GatedLinear(12, 6), nn.Linear(6, 4)), (x,)
