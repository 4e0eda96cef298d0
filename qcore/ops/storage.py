"""Between float and integers, and between packed and whole integers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import QuantizationError
from ..numerics import round_to_int, scalar
from .library import define

__all__ = ["dequantize", "dequantize_block", "pack", "quantize", "unpack"]


def _quantize_meta(
    x: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    rounding: str,
) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@define(
    "quantize(Tensor x, float scale, int zero_point, int quant_min, int quant_max, "
    "ScalarType dtype, str rounding) -> Tensor",
    meta=_quantize_meta,
)
def quantize(
    x: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    rounding: str,
) -> Tensor:
    """``clamp(round(x / scale) + zero_point)``; infinities saturate, NaN becomes the zero point."""
    q = torch.nan_to_num(round_to_int(x.float() / scalar(scale, x), rounding)) + zero_point
    return q.clamp(quant_min, quant_max).to(dtype)


def _dequantize_meta(q: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@define("dequantize(Tensor q, float scale, int zero_point) -> Tensor", meta=_dequantize_meta)
def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``(q - zero_point) * scale`` in float32."""
    return (q.to(torch.int32) - zero_point).float() * scalar(scale, q)


def _dequantize_block_meta(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, block: Sequence[int]
) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@define(
    "dequantize_block(Tensor q, Tensor scale, Tensor? zero_point, int[] block) -> Tensor",
    meta=_dequantize_block_meta,
)
def dequantize_block(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, block: Sequence[int]
) -> Tensor:
    """``(q - zero_point) * scale`` where each block of shape ``block`` has its own.

    Args:
        q: integers, any shape.
        scale: float32; as many values as ``q`` has blocks, in row-major order of the blocks.
        zero_point: int32 like ``scale``, or None for 0.
        block: shape of a block; divides the shape of ``q``.
    """
    grid = [n // b for n, b in zip(q.shape, block, strict=True)]

    def spread(values: Tensor) -> Tensor:
        values = values.reshape(grid)
        for dim, (b, n) in enumerate(zip(block, grid, strict=True)):
            if b > 1 and n > 1:
                values = values.repeat_interleave(b, dim=dim)
        return values

    d = q.to(torch.int32)
    if zero_point is not None:
        d = d - spread(zero_point)
    return d.float() * spread(scale)


def pack(q: Tensor, bits: int) -> Tensor:
    """Integers of 1, 2 or 4 bits, several to a byte, lowest bits first.

    Args:
        q: integers of shape ``[..., K]``, any integer dtype.
        bits: width of one value.

    Returns:
        uint8 ``[..., ceil(K * bits / 8)]``; the last byte of a row is filled with zeros.

    >>> pack(torch.tensor([[1, -1, 7]], dtype=torch.int8), 4)
    tensor([[241,   7]], dtype=torch.uint8)
    """
    if bits not in (1, 2, 4):
        raise QuantizationError(f"bits={bits} can't be packed; use 1, 2 or 4")
    per_byte = 8 // bits
    values = q.to(torch.int32) & ((1 << bits) - 1)
    missing = -values.shape[-1] % per_byte
    values = torch.nn.functional.pad(values, (0, missing))
    values = values.reshape(*values.shape[:-1], -1, per_byte)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=q.device)
    return (values << shifts).sum(-1).to(torch.uint8)


def _unpack_meta(packed: Tensor, bits: int, signed: bool, columns: int) -> Tensor:
    return packed.new_empty(
        (*packed.shape[:-1], columns), dtype=torch.int8 if signed else torch.uint8
    )


@define("unpack(Tensor packed, int bits, bool signed, int columns) -> Tensor", meta=_unpack_meta)
def unpack(packed: Tensor, bits: int, signed: bool, columns: int) -> Tensor:
    """Inverse of :func:`pack`: int8 or uint8 ``[..., columns]``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    values = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    values = values.flatten(-2)[..., :columns]
    if signed:
        sign = 1 << (bits - 1)
        return ((values ^ sign) - sign).to(torch.int8)
    return values.to(torch.uint8)
