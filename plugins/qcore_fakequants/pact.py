"""PACT: the clip of an activation is a parameter.

    y = clamp(x, 0, alpha),   rounded to steps of  s = alpha / (quant_max - quant_min)

for activations behind a relu, whose zero point is ``quant_min``. The gradient of ``y`` by ``alpha``
is 1 where ``x`` is clipped and 0 elsewhere: the rounding error does not count, unlike in LSQ. So
nothing but the loss and a weight decay of ``alpha``, which the paper uses, makes it smaller.

Where calibration found another zero point the tensor has both signs. Then ``alpha`` is the clip of
the side that reaches farther, and the other clip keeps its proportion to it: with ``M`` integers on
the longer side of the zero point, ``s = alpha / M``, and the gradient by ``alpha`` is
``(q - zero_point) / M`` where the clamp acts. With the zero point at ``quant_min`` that is the
paper's.

References:
    Choi et al., 2018, PACT: Parameterized Clipping Activation for Quantized Neural Networks
    <https://arxiv.org/abs/1805.06085>
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcore import LearnedFakeQuantize, QParams

from .lattice import fake_quantize_learned
from .lsq import positive

__all__ = ["PACTFakeQuantize", "longer_side"]


def longer_side(zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """Number of integers on the longer side of the zero point.

    >>> longer_side(torch.tensor([0, 5, 15]), quant_min=0, quant_max=15).tolist()
    [15, 10, 15]
    """
    return torch.maximum(quant_max - zero_point, zero_point - quant_min)


class PACTFakeQuantize(LearnedFakeQuantize):
    """Learns the clip; the zero point stays what calibration found.

    Attributes:
        alpha: parameter shaped by the granularity; the clip is its magnitude.
    """

    learned = ("alpha",)

    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        return {"alpha": qparams.scale * self._longer_side(qparams.zero_point)}

    def _longer_side(self, zero_point: Tensor) -> Tensor:
        dtype = self.scheme.dtype
        return longer_side(zero_point, quant_min=dtype.quant_min, quant_max=dtype.quant_max)

    def current(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.alpha, Tensor)
        assert self.zero_point is not None
        return positive(self.alpha / self._longer_side(self.zero_point)), self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        scale, zero_point = self.current()
        return fake_quantize_learned(
            x,
            scale,
            zero_point,
            dtype=self.scheme.dtype,
            granularity=self.scheme.granularity,
            through=False,
        )
