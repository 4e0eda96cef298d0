"""LSQ+: step and offset are parameters.

The paper quantizes ``x_hat = round(clamp((x - beta) / s, n, p)) * s + beta`` with a real offset
``beta``. A program adds an integer zero point instead, and has 0 on its lattice, so that padding is
exact. So the zero point is

    z = clamp(round(-beta / s), quant_min, quant_max)

in training as in the program: the lattice lies at the multiples of ``s`` next to the paper's.
Gradients go straight through this rounding and clamp, which gives those of the paper: for ``beta``
0 inside and 1 where the clamp acts, for ``s`` the rounding error inside and ``n`` or ``p`` outside
(with ``beta / s`` in the place of ``-z``).

References:
    Bhalgat et al., 2020, LSQ+: Improving low-bit quantization through learnable offsets and better
    initialization <https://arxiv.org/abs/2004.09576>
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcore import (
    LearnedFakeQuantize,
    Observer,
    QParams,
    QScheme,
    QuantizationError,
    straight_through,
)

from .lattice import fake_quantize_learned
from .lsq import positive, values_of_a_step

__all__ = ["LSQPlusFakeQuantize", "zero_point_of"]


def zero_point_of(offset: Tensor, scale: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """``clamp(round(-offset / scale), quant_min, quant_max)`` with the gradient of
    ``-offset / scale``.

    >>> zero_point_of(torch.tensor(-0.52), torch.tensor(0.1), quant_min=0, quant_max=15).item()
    5.0
    """
    exact = -offset / scale
    return straight_through(torch.round(exact).clamp(quant_min, quant_max), exact)


class LSQPlusFakeQuantize(LearnedFakeQuantize):
    """Learns step and offset of an affine scheme.

    Both gradients have the factor of LSQ, ``1 / sqrt(N * Q_P)``. They start at the qparams of the
    observer; the paper's choice for activations, least squared error, is that of ``histogram``.

    Attributes:
        step: parameter shaped by the granularity; the scale is its magnitude.
        offset: parameter of the same shape, in real values: the real value of integer 0.
    """

    learned = ("step", "offset")

    def __init__(self, *, scheme: QScheme, observer: Observer, where: str = "") -> None:
        super().__init__(scheme=scheme, observer=observer, where=where)
        if scheme.symmetric:
            raise QuantizationError(
                f"layer {where!r}: LSQ+ learns a zero point, and {scheme.describe()} has a fixed "
                "one; use fake_quant 'lsq' for symmetric schemes, as the paper does for weights, "
                "or an affine scheme"
            )

    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        return {"step": qparams.scale, "offset": -qparams.zero_point * qparams.scale}

    def current(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.step, Tensor)
        assert isinstance(self.offset, Tensor)
        dtype = self.scheme.dtype
        scale = positive(self.step)
        return scale, zero_point_of(
            self.offset, scale, quant_min=dtype.quant_min, quant_max=dtype.quant_max
        )

    def simulate(self, x: Tensor) -> Tensor:
        scale, zero_point = self.current()
        return fake_quantize_learned(
            x,
            scale,
            zero_point,
            dtype=self.scheme.dtype,
            granularity=self.scheme.granularity,
            count=values_of_a_step(x, scale, batched=not self.of_weight),
        )
