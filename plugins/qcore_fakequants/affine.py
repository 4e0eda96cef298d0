"""Affine fake quantization with the clipped straight-through gradient."""

from torch import Tensor

from qcore import FakeQuantize, QParams

from .lattice import fake_quantize_learned

__all__ = ["AffineFakeQuantize", "fake_quantize_affine"]


def fake_quantize_affine(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` on the lattice of ``qparams``, with the clipped straight-through gradient.

    The value is ``(clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) *
    scale``, equal to what :func:`qcore.quantize_tensor` and :func:`qcore.dequantize_tensor`
    give. The gradient with respect to ``x`` is 1 where rounding lands within
    ``quant_min..quant_max`` and 0 where the clamp acts.

    NaN stays NaN: where a model is trained it must be seen. (Integers know no NaN: there it is the
    zero point.)

    Args:
        x: any shape, floating point.
        qparams: shaped by the scheme's granularity for ``x``; gets no gradient.

    Returns:
        Shaped like ``x`` and of its dtype.

    References:
        Bengio et al., 2013, "Estimating or propagating gradients through stochastic neurons"
        <https://arxiv.org/abs/1308.3432>; Jacob et al., 2018, section 3
        <https://arxiv.org/abs/1712.05877>

    >>> import torch
    >>> from qcore import INT4, QScheme
    >>> qparams = QParams(scale=torch.tensor(0.5), zero_point=torch.tensor(0, dtype=torch.int32),
    ...                   scheme=QScheme(dtype=INT4))
    >>> x = torch.tensor([0.3, 3.7, 3.8, -9.0], requires_grad=True)
    >>> y = fake_quantize_affine(x, qparams)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.5, 3.5, 3.5, -4.0], [1.0, 1.0, 0.0, 0.0])
    """
    scheme = qparams.scheme
    return fake_quantize_learned(
        x,
        qparams.scale.detach(),
        qparams.zero_point,
        dtype=scheme.dtype,
        granularity=scheme.granularity,
        rounded=True,
    )


class AffineFakeQuantize(FakeQuantize):
    """Rounds to the lattice in training too, with the gradient of :func:`fake_quantize_affine`."""

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return fake_quantize_affine(x, qparams)
