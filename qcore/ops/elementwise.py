"""Quantized sums, differences, products, concatenation and lookup tables."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..numerics import scalar
from .batches import fill
from .exact import FLOAT32_EXACT
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest_magnitude

__all__ = ["qadd", "qcat", "qmul", "qrequantize", "qsub", "qtable"]

_TWO = "Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point"


def _two_empty(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """A result of the two operands' common shape, stored like the operand that has it, or ``a``."""
    shape = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    for operand in (a, b):
        if operand.shape == shape:
            return torch.empty_like(operand, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=a.device)


def _two_meta(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    return _two_empty(a, b, output[4])


@define(f"qadd({_TWO}, {OUTPUT_ARGS}) -> Tensor", meta=_two_meta)
def qadd(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    """Sum of two integer tensors of any scales: ``rint(da * (sa / sy) + db * (sb / sy)) + zy``.

    ``da`` and ``db`` are the integers less their zero points; they broadcast.
    """
    out = Output(*output)
    scale = scalar(a_scale, a)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        left, right = centred(a, a_zero_point), centred(b, b_zero_point)
        return out.finish(left, scale, other=right, other_scale=b_scale)

    return fill(_two_empty(a, b, out.dtype), kernel, a, b)


@define(f"qsub({_TWO}, {OUTPUT_ARGS}) -> Tensor", meta=_two_meta)
def qsub(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    """Difference of two integer tensors: ``rint(da * (sa / sy) - db * (sb / sy)) + zy``.

    It is :func:`qadd` of the negated right operand, which float32 holds exactly.
    """
    out = Output(*output)
    scale = scalar(a_scale, a)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        left, right = centred(a, a_zero_point), centred(b, b_zero_point).neg_()
        return out.finish(left, scale, other=right, other_scale=b_scale)

    return fill(_two_empty(a, b, out.dtype), kernel, a, b)


@define(f"qmul({_TWO}, {OUTPUT_ARGS}) -> Tensor", meta=_two_meta)
def qmul(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    """Product of two integer tensors: ``rint(da * db * float32(float32(sa * sb) / sy)) + zy``.

    ``da`` and ``db`` are the integers less their zero points; they broadcast.
    """
    out = Output(*output)
    scale = scalar(a_scale, a) * scalar(b_scale, a)
    # Two 16-bit operands have a 32-bit product, which float32 does not hold.
    most = largest_magnitude(a.dtype, a_zero_point) * largest_magnitude(b.dtype, b_zero_point)
    dtype = torch.float32 if most <= FLOAT32_EXACT else torch.float64

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        left, right = centred(a, a_zero_point), centred(b, b_zero_point)
        return out.finish(left.to(dtype) * right.to(dtype), scale)

    return fill(_two_empty(a, b, out.dtype), kernel, a, b)


def _one_meta(x: Tensor, x_scale: float, x_zero_point: int, *output: Any) -> Tensor:
    return torch.empty_like(x, dtype=output[4])


@define(
    f"qrequantize(Tensor x, float x_scale, int x_zero_point, {OUTPUT_ARGS}) -> Tensor",
    meta=_one_meta,
)
def qrequantize(x: Tensor, x_scale: float, x_zero_point: int, *output: Any) -> Tensor:
    """The same values under another scale and zero point: ``rint(d * (sx / sy)) + zy``."""
    out = Output(*output)
    scale = scalar(x_scale, x)

    def kernel(x: Tensor) -> Tensor:
        return out.finish(centred(x, x_zero_point), scale)

    return fill(torch.empty_like(x, dtype=out.dtype), kernel, x)


def _cat_meta(
    xs: Sequence[Tensor],
    scales: Sequence[float],
    zero_points: Sequence[int],
    dim: int,
    *output: Any,
) -> Tensor:
    return torch.cat([torch.empty_like(x, dtype=output[4]) for x in xs], dim)


@define(
    f"qcat(Tensor[] xs, float[] scales, int[] zero_points, int dim, {OUTPUT_ARGS}) -> Tensor",
    meta=_cat_meta,
)
def qcat(
    xs: Sequence[Tensor],
    scales: Sequence[float],
    zero_points: Sequence[int],
    dim: int,
    *output: Any,
) -> Tensor:
    """Concatenation along ``dim``; each input is requantized to the output's qparams."""
    parts = [
        qrequantize(x, scale, zero_point, *output)
        for x, scale, zero_point in zip(xs, scales, zero_points, strict=True)
    ]
    return torch.cat(parts, dim)


def _table_meta(x: Tensor, table: Tensor, offset: int) -> Tensor:
    return torch.empty_like(x, dtype=table.dtype)


@define("qtable(Tensor x, Tensor table, int offset) -> Tensor", meta=_table_meta)
def qtable(x: Tensor, table: Tensor, offset: int) -> Tensor:
    """``table[x - offset]``: any function of one integer.

    Args:
        x: any shape, int8 or uint8.
        table: ``[quant_max - quant_min + 1]``, the output for each input from ``offset`` up.
        offset: the smallest input.

    Returns:
        Shaped like ``x``, of the table's dtype.

    Raises:
        IndexError: an input outside of the table.
    """

    def kernel(x: Tensor) -> Tensor:
        index = x.reshape(-1).to(torch.int32).sub_(offset)
        return table.index_select(0, index).reshape(x.shape)

    return fill(torch.empty_like(x, dtype=table.dtype), kernel, x)
