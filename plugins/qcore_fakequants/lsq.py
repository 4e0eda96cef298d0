"""LSQ: the step size is a parameter.

The gradient by the step is that of the paper, equation 3, with the range seen from the zero point;
:mod:`qcore_fakequants.lattice` has it. It is multiplied by ``g = 1 / sqrt(N * Q_P)``, so that step
and weights move at rates in proportion to their sizes.

References:
    Esser et al., 2020, Learned Step Size Quantization <https://arxiv.org/abs/1902.08153>
"""

from collections.abc import Mapping

from torch import Tensor

from qcore import SCALE_MIN, LearnedFakeQuantize, QParams

from .lattice import fake_quantize_learned

__all__ = ["LSQFakeQuantize", "positive", "values_of_a_step"]


def positive(step: Tensor) -> Tensor:
    """``max(|step|, SCALE_MIN)``: a positive scale from a parameter that may take any value.

    An optimizer's step that is too long can take a small parameter below 0. The magnitude is then
    still of the right order, where a clamp would leave a scale that makes every value 0.

    >>> import torch
    >>> positive(torch.tensor([0.25, -0.5])).tolist()
    [0.25, 0.5]
    """
    return step.abs().clamp(min=SCALE_MIN)


def values_of_a_step(x: Tensor, step: Tensor, *, batched: bool) -> int:
    """``N`` of section 2.2 of the paper: how many values share a step.

    Args:
        x: any shape; with ``batched`` the first dimension is the batch.
        step: ``[]`` or one for each part of ``x``.
        batched: whether ``x`` is a batch of activations, where features of one example count.

    >>> import torch
    >>> values_of_a_step(torch.zeros(4, 25), torch.zeros(4), batched=False)
    25
    """
    count = x.numel() // max(step.numel(), 1)
    if batched and x.ndim:
        count //= max(x.shape[0], 1)
    return max(count, 1)


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
        return fake_quantize_learned(
            x,
            scale,
            zero_point,
            dtype=self.scheme.dtype,
            granularity=self.scheme.granularity,
            count=values_of_a_step(x, scale, batched=not self.of_weight),
        )
