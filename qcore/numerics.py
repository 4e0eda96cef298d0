"""The one quantization formula, and the arithmetic by which an operation returns to integers.

    q = clamp(round(x / scale) + zero_point, quant_min, quant_max)
    x_hat = (q - zero_point) * scale

Every part of qcore calls the functions of this module: fake quantizers, the reference kernels and
the converters. What differs between engines (rounding, requantization, bias, place of the zero
point, accumulator) is a :class:`Numerics`, which is data that a backend declares and the reference
executes.
"""

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from .dtypes import QDtype
from .errors import BackendError
from .qparams import QParams, expand

__all__ = [
    "INT32_MAX",
    "Numerics",
    "dequantize_tensor",
    "fixed_point",
    "fma",
    "integers",
    "quantize_tensor",
    "requantize",
    "round_to_int",
    "scalar",
]

INT32_MAX = 2**31 - 1


@attrs.frozen(kw_only=True)
class Numerics:
    """The arithmetic contract of a program: how an accumulator becomes an output integer.

    Args:
        rounding: ``"half_even"`` or ``"half_away"`` (ties away from zero).
        requantization: ``"multiplier"``: one float32 multiplication by
            ``M = float32(float32(sx * sw) / sy)``; ``"scale_bias_rescale"``: the float32 result
            ``float32(acc) * float32(sx * sw)``, then bias and residual, then times
            ``float32(1 / sy)``; ``"fixed_point"``: a 31-bit integer multiplier and a shift.
        bias: ``"int32"`` (scale ``sx * sw``, part of the accumulator) or ``"float32"`` (added after
            the scale).
        zero_point: added ``"after"`` or ``"before"`` rounding; they differ at ties when it is odd.
        accumulator: ``"int32"``, or ``"int16_pairs"``: products of two neighbours along K saturate
            to 16 bits before they are added (u8 x s8 without VNNI).

    >>> Numerics().key
    'half_even.multiplier.int32.after.int32'
    >>> Numerics.parse("half_even.multiplier.int32.after.int32") == Numerics()
    True
    """

    ALLOWED: ClassVar[dict[str, tuple[str, ...]]] = {
        "rounding": ("half_even", "half_away"),
        "requantization": ("multiplier", "scale_bias_rescale", "fixed_point"),
        "bias": ("int32", "float32"),
        "zero_point": ("after", "before"),
        "accumulator": ("int32", "int16_pairs"),
    }

    rounding: str = "half_even"
    requantization: str = "multiplier"
    bias: str = "int32"
    zero_point: str = "after"
    accumulator: str = "int32"

    def __attrs_post_init__(self) -> None:
        for field, allowed in self.ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise BackendError(
                    f"numerics: {field}={getattr(self, field)!r}; use one of {', '.join(allowed)}"
                )
        if self.requantization == "fixed_point" and self.bias != "int32":
            raise BackendError(
                "numerics: requantization='fixed_point' has no float step, so bias must be 'int32'"
            )
        if self.requantization == "fixed_point" and self.zero_point != "after":
            raise BackendError(
                "numerics: requantization='fixed_point' rounds the scaled accumulator alone, so "
                "zero_point must be 'after'"
            )

    @property
    def key(self) -> str:
        """All five settings as one word: what operations of Q carry."""
        return ".".join(attrs.astuple(self))

    @classmethod
    def parse(cls, key: str) -> "Numerics":
        """The contract that :attr:`key` names.

        Raises:
            BackendError: not five known settings.
        """
        values = key.split(".")
        if len(values) != len(cls.ALLOWED):
            raise BackendError(
                f"numerics {key!r}: write {'.'.join(cls.ALLOWED)}, for instance {cls().key!r}"
            )
        return cls(**dict(zip(cls.ALLOWED, values, strict=True)))


def scalar(value: float, like: Tensor) -> Tensor:
    """``value`` as a float32 tensor ``[]`` on the device of ``like``.

    A Python divisor would not do: torch divides by one through its reciprocal on some devices.
    """
    return torch.full((), value, dtype=torch.float32, device=like.device)


def round_to_int(x: Tensor, rounding: str = "half_even") -> Tensor:
    """Nearest integers, still in the dtype of ``x``.

    >>> x = torch.tensor([-2.5, -0.5, 0.5, 1.5, 2.5])
    >>> round_to_int(x).tolist(), round_to_int(x, "half_away").tolist()
    ([-2.0, -0.0, 0.0, 2.0, 2.0], [-3.0, -1.0, 1.0, 2.0, 3.0])
    """
    if rounding == "half_even":
        return torch.round(x)
    # floor(|x| + 0.5) is wrong for the float just below a half; comparing the rest is not.
    magnitude = x.abs()
    whole = torch.floor(magnitude)
    return torch.copysign(whole + (magnitude - whole >= 0.5).to(x.dtype), x)


def _round_own(x: Tensor, rounding: str) -> Tensor:
    """:func:`round_to_int` of a temporary, which may be overwritten."""
    return x.round_() if rounding == "half_even" else round_to_int(x, rounding)


def quantize_tensor(x: Tensor, qparams: QParams, *, rounding: str = "half_even") -> Tensor:
    """Integers of ``x``: the formula of this module.

    Computed in float32 (float64 if ``x`` is float64 or the dtype is wider than 16 bits). Infinities
    saturate; NaN becomes the zero point.

    Args:
        x: any shape, floating point.
        qparams: scale and zero point, shaped by the scheme's granularity for ``x``.

    Returns:
        Tensor shaped like ``x`` of the dtype's storage (int8, uint8, int16 or int32).

    >>> from qcore import INT8, QScheme
    >>> p = QParams(scale=torch.tensor(0.5), zero_point=torch.tensor(3, dtype=torch.int32),
    ...             scheme=QScheme(dtype=INT8, symmetric=False))
    >>> quantize_tensor(torch.tensor([0.25, 0.75, -100.0, float("nan")]), p).tolist()
    [3, 5, -128, 3]
    """
    scheme = qparams.scheme
    q = integers(
        x,
        scale=expand(qparams.scale, scheme.granularity, x.shape),
        zero_point=expand(qparams.zero_point, scheme.granularity, x.shape),
        quant_min=scheme.dtype.quant_min,
        quant_max=scheme.dtype.quant_max,
        rounding=rounding,
    )
    return q.to(storage(scheme.dtype))


def integers(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor | int,
    quant_min: int,
    quant_max: int,
    rounding: str = "half_even",
) -> Tensor:
    """What :func:`quantize_tensor` gives, before the integers are stored.

    Args:
        x: any shape, floating point.
        scale, zero_point: broadcast against ``x``.

    Returns:
        Integers in float32, or in float64 if ``x`` is float64 or the range has more than 16 bits.

    >>> integers(torch.tensor([0.25, 9.0]), scale=torch.tensor(0.1), zero_point=1, quant_min=0,
    ...          quant_max=15)
    tensor([ 3., 15.])
    """
    wide = x.dtype == torch.float64 or quant_max - quant_min >= 2**16
    compute = torch.float64 if wide else torch.float32
    q = _round_own(x.to(compute) / scale.to(compute), rounding)
    return torch.nan_to_num(q).add_(zero_point).clamp_(quant_min, quant_max)


def dequantize_tensor(q: Tensor, qparams: QParams) -> Tensor:
    """The float32 values that the integers ``q`` stand for, ``(q - zero_point) * scale``."""
    granularity = qparams.scheme.granularity
    zero_point = expand(qparams.zero_point, granularity, q.shape)
    scale = expand(qparams.scale, granularity, q.shape)
    return (q.to(torch.int32) - zero_point).to(scale.dtype) * scale


def storage(dtype: QDtype) -> torch.dtype:
    """The torch dtype that holds one value of ``dtype``."""
    found: torch.dtype = getattr(torch, dtype.storage)
    return found


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors with one rounding.

    The product of two float32 numbers is exact in float64. The sum is rounded to odd there, by the
    error of the addition, so that the second rounding to float32 can't be a double rounding.

    References:
        Boldo and Melquiond, 2008, "Emulation of FMA and correctly rounded sums" (round to odd).
    """
    product = a.double() * b.double()
    addend = c.double()
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    even = (bits & 1) == 0
    away = (error > 0) == (total > 0)
    odd = torch.where(away, bits + 1, bits - 1).view(torch.float64)
    # Of infinities and NaN the error is NaN, which is not above 0: they stay what they are.
    return torch.where((error.abs() > 0) & even, odd, total).float()


def fixed_point(scale: Tensor) -> tuple[Tensor, Tensor]:
    """A positive factor as ``multiplier * 2**-shift`` with a 31-bit integer multiplier.

    Args:
        scale: positive, any shape.

    Returns:
        int64 ``multiplier`` in ``[2**30, 2**31)`` and int64 ``shift`` of at most 62, shaped like
        ``scale``.

    >>> fixed_point(torch.tensor(0.75))
    (tensor(1610612736), tensor(31))
    """
    mantissa, exponent = torch.frexp(scale.double())
    multiplier = torch.round(mantissa * 2.0**31).to(torch.int64)
    shift = 31 - exponent.to(torch.int64)
    # A float64 mantissa can round up to 1.
    carry = multiplier >> 31
    multiplier, shift = multiplier >> carry, shift - carry
    # Beyond 62 the product with any int32 rounds to zero anyway.
    excess = (shift - 62).clamp(min=0)
    return multiplier >> excess.clamp(max=62), shift - excess


def _round_shift(product: Tensor, shift: Tensor, rounding: str) -> Tensor:
    """``round(product / 2**shift)`` in int64; ``shift`` may be negative.

    What a shift to the left would carry beyond int64 saturates, so that it keeps its sign, at a
    size that leaves room to add another.
    """
    left = (-shift).clamp(0, 61)
    right = shift.clamp(min=0)
    limit = torch.where(left > 0, (1 << 61) >> left, 1 << 62)
    product = torch.minimum(torch.maximum(product, -limit), limit) << left
    half = torch.where(right > 0, 1 << (right - 1).clamp(min=0), 0)
    if rounding == "half_even":
        floor = product >> right
        rest = product - (floor << right)
        up = (rest > half) | ((rest == half) & (right > 0) & (floor & 1 == 1))
        return floor + up.to(torch.int64)
    magnitude = (product.abs() + half) >> right
    return torch.where(product < 0, -magnitude, magnitude)


def requantize(
    acc: Tensor,
    *,
    scale: Tensor,
    y_scale: float,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    numerics: Numerics,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    other_scale: float = 1.0,
) -> Tensor:
    """Output integers of an accumulator, by the contract ``numerics``.

    With the default contract ``clamp(rint(float32(acc) * M [+ float32(other) * Mo]) +
    y_zero_point)`` where ``M = float32(scale / y_scale)`` and ``Mo = float32(other_scale /
    y_scale)``, every step rounded to float32 by itself.

    Args:
        acc: exact integers (int32 bias included) in float32, float64 or int32; any shape.
        scale: float32, ``float32(sx * sw)``; broadcasts against ``acc``.
        y_scale, y_zero_point: qparams of the output.
        y_min, y_max: clamp, within ``2**24``; a fused relu narrows it.
        bias: float32, broadcasts against ``acc``; only for contracts with a float step.
        other: a residual, integers less their zero point; the two broadcast.
        other_scale: its scale.

    Returns:
        float32 tensor of integers within ``[y_min, y_max]``, shaped like ``acc + other``.

    Raises:
        BackendError: a float32 bias under ``requantization="fixed_point"``.
    """
    # The first step of each branch makes a new tensor, which the later ones overwrite.
    y = scalar(y_scale, acc)
    if numerics.requantization == "fixed_point":
        if bias is not None:
            raise BackendError(
                "requantization='fixed_point' has no float step for a float32 bias; give an int32 "
                "bias with the scale of the accumulator"
            )
        multiplier, shift = fixed_point(scale / y)
        whole = _round_shift(acc.to(torch.int64) * multiplier, shift, numerics.rounding)
        if other is not None:
            multiplier, shift = fixed_point(scalar(other_scale, acc) / y)
            product = other.to(torch.int64) * multiplier
            whole = whole + _round_shift(product, shift, numerics.rounding)
        return whole.add_(y_zero_point).clamp_(y_min, y_max).float()
    if numerics.requantization == "multiplier":
        t = acc.to(torch.float32) * (scale / y)
        if bias is not None:
            t.add_(bias / y)
        if other is not None:
            term = other.to(torch.float32) * (scalar(other_scale, acc) / y)
            t = t.add_(term) if term.shape == t.shape else t + term
    else:
        t = acc.to(torch.float32) * scale
        if bias is not None:
            t.add_(bias)
        if other is not None:
            t = fma(other.to(torch.float32), scalar(other_scale, acc), t)
        t.mul_(scalar(1.0, acc) / y)
    if numerics.zero_point == "before":
        return _round_own(t.add_(y_zero_point), numerics.rounding).clamp_(y_min, y_max)
    return _round_own(t, numerics.rounding).add_(y_zero_point).clamp_(y_min, y_max)
