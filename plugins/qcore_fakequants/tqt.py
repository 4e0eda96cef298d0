"""TQT: the logarithm of the clipping threshold is a parameter.

    s = 2 ** (t - (b - 1))     signed,   s = 2 ** (t - b)     unsigned,   b bits

with ``t = log2_threshold``; where the scheme asks for powers of two, ``ceil(t)`` stands for ``t``,
and gradients go straight through it. So the gradient of a value by ``t`` is ``s * ln 2`` times the
rounding error inside, ``low`` and ``high`` outside (the paper's equation 7). A step in ``t``
changes the scale by a factor, so the scale stays positive and one learning rate fits scales of all
sizes.

References:
    Jain et al., 2020, Trained Quantization Thresholds for Accurate and Efficient Fixed-Point
    Inference of Deep Neural Networks <https://arxiv.org/abs/1903.08066>
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qcore import SCALE_MIN, LearnedFakeQuantize, QDtype, QParams, straight_through

from .lattice import fake_quantize_learned

__all__ = ["TQTFakeQuantize", "scale_of"]

_LOWEST, _HIGHEST = math.log2(SCALE_MIN), 64.0
"""Bounds of ``log2(scale)``: every integer of any dtype stands for a finite float32 number."""


def scale_of(log2_threshold: Tensor, *, dtype: QDtype, power_of_two: bool) -> Tensor:
    """Scale of a threshold, given by its logarithm; with powers of two the next one upwards.

    >>> from qcore import INT8
    >>> t = torch.tensor([0.0, 0.3])
    >>> (128 * scale_of(t, dtype=INT8, power_of_two=True)).tolist()
    [1.0, 2.0]
    """
    log2_scale = log2_threshold - _shift(dtype)
    if power_of_two:
        log2_scale = straight_through(torch.ceil(log2_scale), log2_scale)
    # In float64, so that a power of two is exact after rounding to float32.
    return torch.exp2(log2_scale.double().clamp(_LOWEST, _HIGHEST)).float()


def _shift(dtype: QDtype) -> int:
    return dtype.bits - 1 if dtype.signed else dtype.bits


class TQTFakeQuantize(LearnedFakeQuantize):
    """Learns the threshold; the zero point stays what calibration found, in the paper 0.

    A value counts as clipped where rounding leaves the range, as in the paper.

    With powers of two it starts in the middle of the interval that stands for the scale of the
    observer: at its end a step of any size would double the scale.

    Attributes:
        log2_threshold: parameter shaped by the granularity.
    """

    learned = ("log2_threshold",)
    powers_of_two = True

    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        middle = 0.5 if self.scheme.power_of_two else 0.0
        return {"log2_threshold": torch.log2(qparams.scale) + (_shift(self.scheme.dtype) - middle)}

    def current(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.log2_threshold, Tensor)
        assert self.zero_point is not None
        scheme = self.scheme
        scale = scale_of(self.log2_threshold, dtype=scheme.dtype, power_of_two=scheme.power_of_two)
        return scale, self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        scale, zero_point = self.current()
        return fake_quantize_learned(
            x,
            scale,
            zero_point,
            dtype=self.scheme.dtype,
            granularity=self.scheme.granularity,
            rounded=True,
        )
