"""Affine fake quantization with the clipped straight-through gradient."""

from typing import Any

import torch
from torch import Tensor

from qcore import FakeQuantize, QParams, expand

__all__ = ["AffineFakeQuantize", "fake_quantize_affine"]


class _ClippedStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
        wide = bottom.dtype
        rounded = (x.to(wide) / scale.to(wide)).round_()
        # Not torch.clamp, which is not vectorized for bounds that are tensors.
        q = torch.maximum(rounded, bottom)
        torch.minimum(q, top, out=q)
        if ctx.needs_input_grad[0]:
            # One byte a value; NaN equals nothing, so it gets no gradient.
            ctx.save_for_backward(q == rounded)
        # The value is computed in float32 whatever the input is, as dequantize does.
        return q.to(scale.dtype).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        # Not a product with the mask, which would turn an infinite gradient into NaN.
        return torch.where(inside, grads[0], 0.0), None, None, None


def fake_quantize_affine(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` on the lattice of ``qparams``, with the clipped straight-through gradient.

    The value is ``(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) *
    scale``, equal to what :func:`qcore.quantize_tensor` and :func:`qcore.dequantize_tensor`
    give. The gradient with respect to ``x`` is 1 where rounding lands within
    ``quant_min..quant_max`` and 0 where the clamp acts.

    NaN stays NaN, with a gradient of 0: where a model is trained it must be seen. (Integers know no
    NaN: there it is the zero point.)

    Args:
        x: any shape, floating point.
        qparams: shaped by the scheme's granularity for ``x``; gets no gradient.

    Returns:
        Shaped like ``x`` and of its dtype.

    References:
        Bengio et al., 2013, "Estimating or propagating gradients through stochastic neurons"
        <https://arxiv.org/abs/1308.3432>; Jacob et al., 2018, section 3
        <https://arxiv.org/abs/1712.05877>

    >>> from qcore import INT4, QScheme
    >>> qparams = QParams(scale=torch.tensor(0.5), zero_point=torch.tensor(0, dtype=torch.int32),
    ...                   scheme=QScheme(dtype=INT4))
    >>> x = torch.tensor([0.3, 3.7, 3.8, -9.0], requires_grad=True)
    >>> y = fake_quantize_affine(x, qparams)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.5, 3.5, 3.5, -4.0], [1.0, 1.0, 0.0, 0.0])
    """
    dtype, granularity = qparams.scheme.dtype, qparams.scheme.granularity
    wide = torch.float64 if x.dtype == torch.float64 or dtype.bits > 16 else torch.float32
    scale = expand(qparams.scale.detach(), granularity, x.shape)
    zero_point = expand(qparams.zero_point, granularity, x.shape).to(wide)
    result: Tensor = _ClippedStraightThrough.apply(  # type: ignore[no-untyped-call]
        x, scale, dtype.quant_min - zero_point, dtype.quant_max - zero_point
    )
    return result


class AffineFakeQuantize(FakeQuantize):
    """Rounds to the lattice in training too, with the gradient of :func:`fake_quantize_affine`."""

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return fake_quantize_affine(x, qparams)
