"""Stochastic rounding in training: each value goes up or down by chance, and is right on average.

A value between two levels becomes the upper one with the probability of its distance from the lower
one, so ``E[x_hat] = x``. A step of the optimizer that is smaller than half a level then moves the
rounded weight now and then, where rounding to nearest would never show it. In eval mode, and in Q,
rounding is to nearest as always.

References:
    Gupta et al., 2015, Deep learning with limited numerical precision
    <https://arxiv.org/abs/1502.02551>
"""

import torch
from torch import Tensor

from qcore import FakeQuantize, QParams, expand, straight_through

__all__ = ["StochasticFakeQuantize", "round_stochastic"]

_ROUNDING = 2.0**-22
"""Relative error of ``(k * scale) / scale`` in float32: what is this near to a level is on it."""


def round_stochastic(x: Tensor) -> Tensor:
    """Each value as one of its two neighbouring integers; integers stay as they are.

    Args:
        x: any shape, floating point.

    Returns:
        Shaped like ``x`` and of its dtype; ``floor(x) + 1`` with probability ``x - floor(x)``.

    >>> _ = torch.manual_seed(0)
    >>> round_stochastic(torch.tensor([3.0, -2.0])).tolist()
    [3.0, -2.0]
    >>> y = round_stochastic(torch.full((100_000,), 0.2))
    >>> sorted(set(y.tolist())), round(y.mean().item(), 2)
    ([0.0, 1.0], 0.2)
    """
    nearest = x.round()
    low = x.floor()
    chosen = low + (torch.rand_like(x) < x - low)
    return torch.where((x - nearest).abs() <= _ROUNDING * nearest.abs(), nearest, chosen)


class StochasticFakeQuantize(FakeQuantize):
    """Rounds by :func:`round_stochastic` in training.

    The gradient is 1 where a value lies within the range of the integers, and 0 where it is
    clamped. The random numbers are torch's, so a seed repeats a training.
    """

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        scheme = qparams.scheme
        wide = x if x.dtype == torch.float64 else x.float()
        scale = expand(qparams.scale, scheme.granularity, x.shape).to(wide.dtype)
        zero_point = expand(qparams.zero_point, scheme.granularity, x.shape)
        low = scheme.dtype.quant_min - zero_point
        high = scheme.dtype.quant_max - zero_point
        with torch.no_grad():
            value = round_stochastic(wide / scale).clamp(low, high) * scale
        clipped = torch.maximum(torch.minimum(wide, high * scale), low * scale)
        return straight_through(value, clipped).to(x.dtype)
