"""LSQ: the step size is a parameter.

The gradient by the step is that of the paper, equation 3, with the range seen from the zero point;
:mod:`qcore_fakequants.lattice` has it. It is multiplied by ``g = 1 / sqrt(N * Q_P)``, so that step
and weights move at rates in proportion to their sizes.

References:
    Esser et al., 2020, Learned Step Size Quantization <https://arxiv.org/abs/1902.08153>
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcore import SCALE_MIN, LearnedFakeQuantize, QParams, straight_through

from .lattice import fake_quantize_learned

__all__ = ["LSQFakeQuantize", "gradient_scale", "positive", "scale_gradient"]


def positive(step: Tensor) -> Tensor:
    """``max(|step|, SCALE_MIN)``: a positive scale from a parameter that may take any value.

    An optimizer's step that is too long can take a small parameter below 0. The magnitude is then
    still of the right order, where a clamp would leave a scale that makes every value 0.

    >>> positive(torch.tensor([0.25, -0.5])).tolist()
    [0.25, 0.5]
    """
    return step.abs().clamp(min=SCALE_MIN)


def gradient_scale(
    x: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, batched: bool
) -> Tensor:
    """``1 / sqrt(N * Q_P)``, section 2.2 of the paper.

    ``N`` is the number of values that share a step: weights, or with ``batched`` features of one
    example. ``Q_P`` is the number of steps above the zero point, as in the paper, or one less than
    below it where that is more: the two agree for signed integers and a zero point of 0.

    Args:
        x: any shape; with ``batched`` the first dimension is the batch.
        zero_point: integers, ``[]`` or one for each step.
        quant_min, quant_max: range of the integers.
        batched: whether ``x`` is a batch of activations.

    Returns:
        float32, shaped like ``zero_point``.

    >>> weight = torch.zeros(4, 25)
    >>> g = gradient_scale(weight, torch.tensor(0), quant_min=-4, quant_max=3, batched=False)
    >>> round(g.item() ** -2)
    300
    """
    count = x.numel() // max(zero_point.numel(), 1)
    if batched and x.ndim:
        count //= max(x.shape[0], 1)
    levels = torch.maximum(quant_max - zero_point, zero_point - quant_min - 1).clamp(min=1)
    return (levels.float() * max(count, 1)).rsqrt()


def scale_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """``value``, bit for bit, whose gradient is multiplied by ``factor``."""
    return straight_through(value, value * factor)


class LSQFakeQuantize(LearnedFakeQuantize):
    """Learns the step; the zero point stays what calibration found.

    The step starts where the observer puts it. The observer ``mean_abs`` gives the start of the
    paper, ``2 * mean|x| / sqrt(Q_P)``; others, such as ``mse``, start nearer to the end at 8 bits.
    A value counts as clipped from the last integers on, as in the paper, not from half a step
    beyond them.

    Attributes:
        step: parameter shaped by the granularity; the scale is its magnitude.
    """

    learned = ("step",)

    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        return {"step": qparams.scale}

    def current(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.step, Tensor)
        assert self.zero_point is not None
        return positive(self.step), self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        scale, zero_point = self.current()
        dtype = self.scheme.dtype
        factor = gradient_scale(
            x,
            zero_point,
            quant_min=dtype.quant_min,
            quant_max=dtype.quant_max,
            batched=not self.of_weight,
        )
        return fake_quantize_learned(
            x,
            scale_gradient(scale, factor),
            zero_point,
            dtype=dtype,
            granularity=self.scheme.granularity,
        )
