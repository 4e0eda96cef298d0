"""Quantized addition, multiplication, concatenation and lookup tables."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics import scalar
from .library import OUTPUT_ARGS, define
from .output import Output, centred

__all__ = ["qadd", "qcat", "qmul", "qrequantize", "qtable"]

_TWO = "Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point"


def _two_meta(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: object,
) -> Tensor:
    return (a.float() + b.float()).to(output[4])  # type: ignore[call-overload,no-any-return]


@define(f"qadd({_TWO}, {OUTPUT_ARGS}) -> Tensor", meta=_two_meta)
def qadd(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: object,
) -> Tensor:
    """Sum of two integer tensors of any scales: ``rint(da * (sa / sy) + db * (sb / sy)) + zy``.

    ``da`` and ``db`` are the integers less their zero points; they broadcast.
    """
    out = Output(*output)  # type: ignore[arg-type]
    left, right = torch.broadcast_tensors(centred(a, a_zero_point), centred(b, b_zero_point))
    return out.finish(left, scalar(a_scale, a), other=right, other_scale=b_scale)


@define(f"qmul({_TWO}, {OUTPUT_ARGS}) -> Tensor", meta=_two_meta)
def qmul(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: object,
) -> Tensor:
    """Product of two integer tensors: ``rint(da * db * float32(sa * sb) / sy) + zy``; broadcasts."""
    out = Output(*output)  # type: ignore[arg-type]
    left, right = centred(a, a_zero_point), centred(b, b_zero_point)
    # Two 16-bit operands have a 32-bit product, which float32 does not hold.
    product = left * right if a.element_size() == 1 else left.double() * right.double()
    return out.finish(product, scalar(a_scale, a) * scalar(b_scale, a))


def _one_meta(x: Tensor, x_scale: float, x_zero_point: int, *output: object) -> Tensor:
    return torch.empty_like(x, dtype=output[4])  # type: ignore[call-overload,no-any-return]


@define(
    f"qrequantize(Tensor x, float x_scale, int x_zero_point, {OUTPUT_ARGS}) -> Tensor",
    meta=_one_meta,
)
def qrequantize(x: Tensor, x_scale: float, x_zero_point: int, *output: object) -> Tensor:
    """The same values under another scale and zero point: ``rint(d * (sx / sy)) + zy``."""
    out = Output(*output)  # type: ignore[arg-type]
    return out.finish(centred(x, x_zero_point), scalar(x_scale, x))


def _cat_meta(
    xs: Sequence[Tensor], scales: Sequence[float], zero_points: Sequence[int], dim: int, *output: object
) -> Tensor:
    return torch.cat([x.to(output[4]) for x in xs], dim)  # type: ignore[call-overload]


@define(
    f"qcat(Tensor[] xs, float[] scales, int[] zero_points, int dim, {OUTPUT_ARGS}) -> Tensor",
    meta=_cat_meta,
)
def qcat(
    xs: Sequence[Tensor], scales: Sequence[float], zero_points: Sequence[int], dim: int, *output: object
) -> Tensor:
    """Concatenation along ``dim``; each input is requantized to the output's qparams."""
    out = Output(*output)  # type: ignore[arg-type]
    parts = [
        out.finish(centred(x, zero_point), scalar(scale, x))
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
    """
    index = x.reshape(-1).to(torch.int32) - offset
    return table.index_select(0, index).reshape(x.shape)
