"""Scale and zero point: what they are, and how a range of values chooses them.

``scale`` always multiplies back: ``x = (q - zero_point) * scale``.
"""

import attrs
import torch
from torch import Tensor

from .config import QScheme
from .errors import QuantizationError
from .granularity import Granularity, PerChannel, PerTensor, PerToken

__all__ = ["RANGE_MAX", "SCALE_MIN", "QParams", "choose_qparams", "expand", "token_scale"]

SCALE_MIN = 2.0**-40
"""Smallest scale: products and quotients of two scales stay normal float32 numbers."""

RANGE_MAX = 2.0**126
"""Largest magnitude of a range: every integer of any dtype then stands for a finite float32 number,
also where the scale is rounded up to a power of two."""


@attrs.frozen(kw_only=True, eq=False)
class QParams:
    """Scale and zero point of one tensor.

    Args:
        scale: float32, shape by the scheme's granularity, finite and positive.
        zero_point: int32, same shape as ``scale``, within the scheme's dtype.
        scheme: what the integers mean.

    Raises:
        QuantizationError: a scale is zero, negative, NaN or infinite; a zero point is out of range;
            the shapes differ; a dtype is another.
    """

    scale: Tensor
    zero_point: Tensor
    scheme: QScheme

    @classmethod
    def unchecked(cls, *, scale: Tensor, zero_point: Tensor, scheme: QScheme) -> "QParams":
        """One of values that are known to be good; unlike the constructor, torch.compile can run
        it."""
        made = object.__new__(cls)
        for name, value in (("scale", scale), ("zero_point", zero_point), ("scheme", scheme)):
            object.__setattr__(made, name, value)
        return made

    def __attrs_post_init__(self) -> None:
        if self.scale.dtype != torch.float32 or self.zero_point.dtype != torch.int32:
            raise QuantizationError(
                f"scale {self.scale.dtype} and zero_point {self.zero_point.dtype} must be float32 "
                "and int32: the arithmetic is defined on these"
            )
        if self.scale.is_meta:
            return
        if self.scale.shape != self.zero_point.shape:
            raise QuantizationError(
                f"scale {list(self.scale.shape)} and zero_point {list(self.zero_point.shape)} "
                "must have one shape"
            )
        good = torch.isfinite(self.scale) & (self.scale > 0)
        if not bool(good.all()):
            bad = self.scale.detach()[~good].flatten()[0].item()
            raise QuantizationError(
                f"scale {bad} at {_first(~good)}: a scale is finite and positive; observe data "
                "with a range above 0, or give a positive scale"
            )
        dtype = self.scheme.dtype
        good = (self.zero_point >= dtype.quant_min) & (self.zero_point <= dtype.quant_max)
        if not bool(good.all()):
            bad = self.zero_point[~good].flatten()[0].item()
            raise QuantizationError(
                f"zero_point {bad} at {_first(~good)} is outside {dtype.name} "
                f"[{dtype.quant_min}, {dtype.quant_max}]"
            )


def _first(mask: Tensor) -> str:
    index = mask.nonzero()[0].tolist() if mask.ndim else []
    return f"index {index}" if index else "the tensor"


def choose_qparams(min_val: Tensor, max_val: Tensor, *, scheme: QScheme) -> QParams:
    """Scale and zero point that map ``[min_val, max_val]`` onto the scheme's dtype.

    Both ways the range is first widened to contain 0, so that 0 (padding, relu) is exact.

    - symmetric: ``scale = max(-min, max) / ((quant_max - quant_min) / 2)``; the zero point is the
      middle of the dtype, 0 if it is signed.
    - affine: ``scale = (max - min) / (quant_max - quant_min)``,
      ``zero_point = clamp(rint(quant_min - min / scale))``.

    Scales are at least :data:`SCALE_MIN`, so an empty range still has a positive scale. Ranges are
    clipped to :data:`RANGE_MAX`, so what the integers stand for is finite.

    Args:
        min_val: shape by the scheme's granularity (``[]``, ``[C]``, ...), float32. Smallest value.
        max_val: same shape as ``min_val``. Largest value.
        scheme: dtype and symmetry.

    Returns:
        QParams; float32 ``scale`` and int32 ``zero_point``, both shaped like ``min_val``.

    Raises:
        QuantizationError: a bound is NaN or infinite, or ``min_val > max_val`` anywhere.

    References:
        Jacob et al., 2018, section 3 <https://arxiv.org/abs/1712.05877>

    >>> from qcore import QScheme, UINT8
    >>> p = choose_qparams(torch.tensor(-1.0), torch.tensor(4.1), scheme=QScheme(
    ...     dtype=UINT8, symmetric=False))
    >>> round(p.scale.item(), 6), p.zero_point.item()
    (0.02, 50)
    """
    if not bool((torch.isfinite(min_val) & torch.isfinite(max_val)).all()):
        raise QuantizationError(
            f"range [{min_val.min().item()}, {max_val.max().item()}] is not finite; look for "
            "NaN or Inf in the data"
        )
    if bool((min_val > max_val).any()):
        raise QuantizationError(
            "min_val > max_val: nothing was observed, or the bounds are swapped"
        )
    dtype = scheme.dtype
    # In float64: in float32, max - min of a wide range overflows.
    low = min_val.detach().double().clamp(-RANGE_MAX, 0.0)
    high = max_val.detach().double().clamp(0.0, RANGE_MAX)
    steps = dtype.quant_max - dtype.quant_min
    if scheme.symmetric:
        scale = _symmetric_scale(torch.maximum(-low, high), steps)
    else:
        scale = ((high - low) / steps).clamp(min=SCALE_MIN)
    if scheme.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    scale = scale.float()
    if scheme.symmetric:
        middle = (dtype.quant_min + dtype.quant_max + 1) // 2
        zero_point = torch.full_like(scale, middle, dtype=torch.int32)
        if dtype.signed:
            zero_point.zero_()
    else:
        zero_point = torch.round(dtype.quant_min - low / scale.double())
        zero_point = zero_point.clamp(dtype.quant_min, dtype.quant_max).to(torch.int32)
    return QParams(scale=scale, zero_point=zero_point, scheme=scheme)


def _symmetric_scale(largest: Tensor, steps: int) -> Tensor:
    """Scale that maps ``[-largest, largest]`` onto ``steps + 1`` integers; float64 in and out."""
    return (largest / (steps / 2)).clamp(min=SCALE_MIN)


def token_scale(x: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """The symmetric scale of each token, found at run time from its largest magnitude.

    The rule of :func:`choose_qparams` for a symmetric scheme: ``max|x| / ((quant_max - quant_min) /
    2)``, at least :data:`SCALE_MIN`. The quotient is rounded to float32 once.

    A token that holds NaN or an infinity has no scale. It gets NaN, which a result made with it
    shows; the other tokens never notice.

    Args:
        x: ``[..., K]``, float32; a token is a row along the last dimension.
        quant_min, quant_max: the integers in use.

    Returns:
        float32 ``[..., 1]``.

    >>> token_scale(torch.tensor([[0.5, -2.55], [0.0, 0.0]]), quant_min=-128, quant_max=127)
    tensor([[2.0000e-02],
            [9.0949e-13]])
    """
    if x.shape[-1] == 0:
        largest = x.new_zeros((*x.shape[:-1], 1))
    else:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        largest = torch.maximum(-low, high)
    scale = _symmetric_scale(largest.double().clamp(max=RANGE_MAX), quant_max - quant_min)
    return torch.where(torch.isfinite(largest), scale, torch.nan).float()


def expand(param: Tensor, granularity: Granularity, shape: torch.Size) -> Tensor:
    """A scale or zero point, reshaped to broadcast against a tensor of ``shape``.

    >>> expand(torch.tensor([1.0, 2.0]), PerChannel(1), torch.Size([3, 2, 4])).shape
    torch.Size([1, 2, 1])
    """
    if isinstance(granularity, PerTensor):
        return param.reshape(())
    if isinstance(granularity, PerChannel):
        axis = granularity.axis(len(shape))
        return param.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if isinstance(granularity, PerToken):
        return param
    for dim, size in enumerate(granularity.block_shape(shape)):
        if size != 1:
            param = param.repeat_interleave(size, dim=dim)
    return param
